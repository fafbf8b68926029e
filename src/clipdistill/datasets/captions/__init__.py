"""Captioned images: what of a caption are candidate words, and where its image lies."""
