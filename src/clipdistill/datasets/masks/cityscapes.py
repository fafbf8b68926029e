"""Masks of Cityscapes: the 19 classes of its benchmark; every other pixel is ignored, and there is no background."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipdistill.datasets import prompt_names
from clipdistill.datasets.masks.masked import IGNORE, IndexFiles, MaskedImages, existing_files, masked_images
from clipdistill.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = prompt_names.listed(
    """
    road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider,
    car, truck, bus, train, motorcycle, bicycle
    """
)

# Ids of these classes in the label files, in the same order; there are 0 to 33, and 255 for the license plate (-1).
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_ALL_IDS = (*range(34), 255)

_IMAGE, _MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"
_CURE = (
    "get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from the Cityscapes site, and unpack both in "
    "ttd.segment.root"
)


def read(root: Path, split: str, max_pixels: int) -> MaskedImages:
    """Read a split.

    Args:
        root: holds leftImg8bit/{split}/{city}/*_leftImg8bit.png and gtFine/{split}/{city}/*_gtFine_labelIds.png.
        split: train or val; the masks of test are not public.
        max_pixels: `dataset.max_pixels`.

    Returns:
        The images of all cities, by city and name.

    Raises:
        DataError: there are no images, or a file is missing.
    """
    folder = root / "leftImg8bit" / split
    found = sorted(path.relative_to(folder).as_posix() for path in folder.glob(f"*/*{_IMAGE}"))
    if not found:
        raise DataError(f"{folder} holds no {{city}}/*{_IMAGE}: {_CURE}")
    ids = [name.removesuffix(_IMAGE) for name in found]
    paths = existing_files(folder, found, _CURE)
    masks = existing_files(root / "gtFine" / split, [f"{image_id}{_MASK}" for image_id in ids], _CURE)
    index_of = dict.fromkeys(_ALL_IDS, IGNORE) | {number: index for index, number in enumerate(_IDS)}
    classes = prompt_names.with_prompts(CLASSES, {}, {})
    return masked_images(classes, False, ids, paths, IndexFiles(masks, index_of, max_pixels), max_pixels)
