"""The generated data set: drawn objects of twelve classes, and captioned images to train a CLIP from."""
