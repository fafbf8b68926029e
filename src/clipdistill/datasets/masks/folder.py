"""One's own images with masks: two folders a split, and a list of class names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipdistill.datasets import prompt_names
from clipdistill.datasets.masks.masked import (
    BACKGROUND,
    IGNORE,
    IndexFiles,
    MaskedImages,
    masked_images,
    named_alike,
)

if TYPE_CHECKING:
    from pathlib import Path


def read(root: Path, split: str, max_pixels: int) -> MaskedImages:
    """Read a split.

    Args:
        root: holds {split}/images, {split}/masks with a PNG of the same name for each, and classes.txt: value v of a
            mask is the class of line v, counted from 0; a first line `background` says that there is a background.
        split: folder.
        max_pixels: `dataset.max_pixels`.

    Returns:
        The images by name; 255 is ignored.

    Raises:
        DataError: a file is missing, or the list of names is not of its form.
    """
    listed = prompt_names.read_class_file(root / prompt_names.CLASS_FILE, {})
    background = listed[0].name == BACKGROUND
    pictures, indices = root / split / "images", root / split / "masks"
    cure = f"put images into {pictures}, and a PNG of the same name for each into {indices}"
    ids, paths, masks = named_alike(pictures, indices, cure)
    index_of = {index: index for index in (*range(min(len(listed), IGNORE)), IGNORE)}
    files = IndexFiles(masks, index_of, max_pixels)
    return masked_images(listed[background:], background, ids, paths, files, max_pixels)
