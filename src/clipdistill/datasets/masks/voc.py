"""Masks of PASCAL VOC, and of any data set in its layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipdistill.datasets import prompt_names
from clipdistill.datasets.masks.masked import IGNORE, IndexFiles, MaskedImages, existing_files, masked_images
from clipdistill.datasets.raw import read_lines
from clipdistill.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from clipdistill.datasets.table import ClassName

_CURE = "get VOCtrainval_11-May-2012.tar from the PASCAL VOC site, and unpack it in ttd.segment.root"


def read(root: Path, split: str, max_pixels: int) -> MaskedImages:
    """Read a split.

    Args:
        root: holds VOCdevkit/VOC2012 or VOC2012, or is such a folder: with JPEGImages, SegmentationClass and
            ImageSets. A classes.txt in that folder, or between it and `root`, names other classes than VOC's.
        split: list in ImageSets/Segmentation. Where that folder is not there: list in ImageSets/Main, of which the
            images count that have a mask.
        max_pixels: `dataset.max_pixels`.

    Returns:
        The images of the list, in its order, with a background; 255 is ignored.

    Raises:
        DataError: the layout, the list or a file is missing.
    """
    base = _base(root)
    classes = _classes(root, base)
    ids = _ids(base, split)
    paths = existing_files(base / "JPEGImages", [f"{image_id}.jpg" for image_id in ids], _CURE)
    masks = existing_files(base / "SegmentationClass", [f"{image_id}.png" for image_id in ids], _CURE)
    index_of = {index: index for index in (*range(len(classes) + 1), IGNORE)}
    return masked_images(classes, True, ids, paths, IndexFiles(masks, index_of, max_pixels), max_pixels)


def _base(root: Path) -> Path:
    places = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
    found = next((place for place in places if (place / "SegmentationClass").is_dir()), None)
    if found is None:
        raise DataError(f"{root}: no VOC with masks here (a folder with SegmentationClass): {_CURE}")
    return found


def _classes(root: Path, base: Path) -> list[ClassName]:
    """The twenty of VOC, or those of a list that lies in the release or above it, up to the root."""
    places = [place for place in (base, *base.parents) if place.is_relative_to(root)]
    for place in places:
        if (place / prompt_names.CLASS_FILE).is_file():
            return prompt_names.read_class_file(place / prompt_names.CLASS_FILE, {})
    return prompt_names.with_prompts(prompt_names.VOC_CLASSES, prompt_names.VOC_PROMPTS, {})


def _ids(base: Path, split: str) -> list[str]:
    lists = base / "ImageSets"
    own = (lists / "Segmentation").is_dir()
    path = lists / ("Segmentation" if own else "Main") / f"{split}.txt"
    ids = read_lines(path, f"ttd.segment must name a list there, and names {split!r}; {_CURE}")
    for image_id in ids:
        if len(image_id.split()) != 1:
            raise DataError(f"{path}: {image_id!r} is not one image id; name a list of images in ttd.segment")
    if not own:
        masked = {mask.stem for mask in (base / "SegmentationClass").iterdir()}
        ids = [image_id for image_id in ids if image_id in masked]
    if not ids:
        raise DataError(f"{path} names no image that has a mask in SegmentationClass: {_CURE}")
    if len(set(ids)) < len(ids):
        twice = next(image_id for image_id in ids if ids.count(image_id) > 1)
        raise DataError(f"{path} names {twice!r} twice; remove one")
    return ids
