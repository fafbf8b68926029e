"""A trained student at work: what the command line and other programs call."""
