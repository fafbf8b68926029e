"""One's own images with masks: two folders a split, and a list of class names."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from clipdistill.datasets import prompt_names
from clipdistill.datasets.masks.masked import (
    BACKGROUND,
    IGNORE,
    IndexFiles,
    MaskedImages,
    existing_files,
    image_names,
    masked_images,
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
    folder = root / split
    cure = f"put images into {folder / 'images'}, and a PNG of the same name for each into {folder / 'masks'}"
    names = image_names(folder / "images", cure)
    ids = [PurePosixPath(name).stem for name in names]
    paths = existing_files(folder / "images", names, cure)
    masks = existing_files(folder / "masks", [f"{image_id}.png" for image_id in ids], cure)
    index_of = {index: index for index in (*range(min(len(listed), IGNORE)), IGNORE)}
    files = IndexFiles(masks, index_of, max_pixels)
    return masked_images(listed[background:], background, ids, paths, files, max_pixels)
