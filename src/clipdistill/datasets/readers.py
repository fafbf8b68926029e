"""The layouts that can be read, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from clipdistill.datasets import coco, folder, formatted, nuswide, open_vocabulary, voc

if TYPE_CHECKING:
    from clipdistill.datasets.raw import RawDataset
    from clipdistill.params import DatasetParams

_READERS = {
    "voc": voc.read,
    "coco": coco.read,
    "nuswide": nuswide.read,
    "formatted": formatted.read,
    "folder": folder.read,
}


def read_raw(params: DatasetParams) -> RawDataset:
    """Read a data set's lists and annotations with the reader that the parameters name; no image is opened.

    Args:
        params: section `dataset`.

    Returns:
        Paths and labels of both splits, the labels of the open vocabulary, and the problems that were met.

    Raises:
        DataError: files are missing or contradictory; the text says what to get and where to put it.
        ParamsError: a parameter does not fit the layout.
    """
    found = _READERS[params.reader](params)
    if found.open_classes:
        return found
    return replace(found, open_classes=open_vocabulary.choose(params, found.classes))
