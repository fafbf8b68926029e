"""Masks of ADE20K as its scene-parsing challenge has them: 150 classes, and no background."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipdistill.datasets import prompt_names
from clipdistill.datasets.masks.masked import (
    IGNORE,
    IndexFiles,
    MaskedImages,
    masked_images,
    named_alike,
)
from clipdistill.datasets.raw import read_lines
from clipdistill.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from clipdistill.datasets.table import ClassName

NAME_FILE = "objectInfo150.txt"

_CURE = (
    "get ADEChallengeData2016.zip from the site of the MIT Scene Parsing Benchmark, unpack it, and let "
    "ttd.segment.root name its folder ADEChallengeData2016, ttd.segment.train and .val training and validation"
)


def read(root: Path, split: str, max_pixels: int) -> MaskedImages:
    """Read a split.

    Args:
        root: holds images/{split}, annotations/{split}/*.png of the same names, and objectInfo150.txt.
        split: training or validation.
        max_pixels: `dataset.max_pixels`.

    Returns:
        The images by name. Value v of a mask is the class of line v in objectInfo150.txt; 0 is ignored.

    Raises:
        DataError: a file is missing, or the list of names is not of its form.
    """
    classes = _classes(root / NAME_FILE)
    ids, paths, masks = named_alike(root / "images" / split, root / "annotations" / split, _CURE)
    index_of = {0: IGNORE} | {index + 1: index for index in range(len(classes))}
    return masked_images(classes, False, ids, paths, IndexFiles(masks, index_of, max_pixels), max_pixels)


def _classes(path: Path) -> list[ClassName]:
    """First names of the classes: the last column of a table with tabs, whose first one counts from 1."""
    header, *rows = [[cell.strip() for cell in line.split("\t")] for line in read_lines(path, _CURE)] or [[""]]
    if len(header) < 2 or header[-1] != "Name":
        raise DataError(f"{path}: the first line must be a header whose last column is Name; get the file again")
    names: list[str] = []
    for cells in rows:
        line = "\t".join(cells)
        # With a cell too few, the last one may be a count and no name.
        if len(cells) != len(header):
            raise DataError(
                f"{path}: {line!r} has {len(cells)} cells between tabs, and the first line {len(header)}; get the file "
                "again, or write the cells of a line with one tab between two"
            )
        if cells[0] != str(len(names) + 1):
            raise DataError(f"{path}: {line!r} stands where class {len(names) + 1} should; get the file again")
        names.append(cells[-1].split(",")[0].strip())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: two classes have {twice!r} as their first name; rename one there")
    return prompt_names.with_prompts(names, {}, {})
