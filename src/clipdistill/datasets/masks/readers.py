"""The layouts of masks that can be read, by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clipdistill.datasets.masks import ade, cityscapes, coco, folder, voc

if TYPE_CHECKING:
    from clipdistill.datasets.masks.masked import MaskedImages
    from clipdistill.datasets.table import Split
    from clipdistill.params import SegmentParams

_READERS = {
    "voc": voc.read,
    "coco": coco.read,
    "cityscapes": cityscapes.read,
    "ade": ade.read,
    "folder": folder.read,
}


def read_masked(params: SegmentParams, split: Split, max_pixels: int) -> MaskedImages:
    """Find a split's images and masks with the reader that the parameters name; no image is opened.

    Args:
        params: section `ttd.segment`.
        split: which of the two that it names.
        max_pixels: `dataset.max_pixels`.

    Raises:
        DataError: files are missing or not of their form; the text says what to get and where to put it.
    """
    name = params.train if split == "train" else params.val
    return _READERS[params.reader](Path(params.root), name, max_pixels)
