"""Images with segmentation masks, in the layouts in which such data sets lie."""
