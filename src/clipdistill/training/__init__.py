"""The training loop and a recipe for each method."""
