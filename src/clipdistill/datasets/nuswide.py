"""NUS-WIDE as its publisher gives it out: the official lists and the 81 concepts that people labelled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipdistill.datasets import prompt_names
from clipdistill.datasets.raw import Fence, Problem, RawDataset, RawSplit, admit, assemble, path_id, read_lines
from clipdistill.datasets.table import SPLITS, Split
from clipdistill.errors import DataError

if TYPE_CHECKING:
    from clipdistill.datasets.table import Labels
    from clipdistill.params import DatasetParams


def read(params: DatasetParams) -> RawDataset:
    """Read the lists and the human labels.

    Args:
        params: `root` holds ImageList, AllLabels and ConceptsList; `train` and `val` name lists (Train, Test:
            the file ImageList/TrainImagelist.txt); `images`, or else {root}/Flickr, holds the images.

    Returns:
        The data set; an image's id is its path without suffix, classes are in alphabetical order.

    Raises:
        DataError: a file is missing, or its rows do not fit the image list.
        ParamsError: a prompt name is for an unknown class.
    """
    root = Path(params.root)
    image_root = Path(params.images) if params.images else root / "Flickr"
    if not image_root.is_dir():
        raise DataError(f"{image_root} is missing: {_cure(root)}")
    names = sorted(read_lines(root / "ConceptsList" / "Concepts81.txt", _cure(root)))
    if not names or len(set(names)) != len(names):
        raise DataError(f"{root / 'ConceptsList' / 'Concepts81.txt'} is empty or names a concept twice; get it again")
    every = _image_list(root, "")
    row_of: dict[str, int] = {}
    for row, path in enumerate(every):
        row_of.setdefault(path, row)
    labels = _labels(root, names, len(every))
    problems: list[Problem] = []
    splits = {}
    for split in SPLITS:
        listed = _image_list(root, params.train if split == "train" else params.val)
        paths, rows = _read_split(listed, split, Fence(image_root), row_of, problems)
        splits[split] = RawSplit([path_id(path) for path in paths], paths, labels[rows])
    classes = prompt_names.with_prompts(names, {}, params.prompt_names)
    return assemble(image_root, classes, splits, problems)


def _cure(root: Path) -> str:
    return (
        "ask the publisher of NUS-WIDE for the image list, the concept list and the ground truth, and unpack "
        f"them so that {root} holds ImageList, ConceptsList and AllLabels; the images belong in "
        f"{root / 'Flickr'}, or where dataset.images says; dataset.train and dataset.val are Train and Test"
    )


def _image_list(root: Path, name: str) -> list[str]:
    """Image paths of ImageList/{name}Imagelist.txt, with slashes."""
    path = root / "ImageList" / f"{name}Imagelist.txt"
    return [line.replace("\\", "/") for line in read_lines(path, _cure(root))]


def _labels(root: Path, names: list[str], images: int) -> Labels:
    """Labels int8 [images, C] of 0 and 1, one file a concept."""
    fence = Fence(root / "AllLabels", "missing_annotation")
    labels = np.empty((images, len(names)), np.int8)
    for column, name in enumerate(names):
        file_name = f"Labels_{name}.txt"
        if refusal := fence.check(file_name):
            raise DataError(f"concept {name!r}: {refusal[1]}: {_cure(root)}")
        path = fence.folder / file_name
        lines = read_lines(path, _cure(root))
        if len(lines) != images:
            raise DataError(f"{path} has {len(lines)} rows, ImageList/Imagelist.txt has {images}; get both again")
        if wrong := set(lines) - {"0", "1"}:
            raise DataError(f"{path}: row {lines.index(min(wrong)) + 1} is {min(wrong)!r}, neither 0 nor 1")
        labels[:, column] = np.array(lines) == "1"
    return labels


def _read_split(
    paths: list[str], split: Split, fence: Fence, row_of: dict[str, int], problems: list[Problem]
) -> tuple[list[str], list[int]]:
    """Paths of a split's images, and their rows in the image list."""
    listed = [path for path in paths if path in row_of]
    problems.extend(
        Problem("missing_annotation", split, path, "not in ImageList/Imagelist.txt")
        for path in paths
        if path not in row_of
    )
    kept = [listed[row] for row in admit(fence, split, [path_id(path) for path in listed], listed, problems)]
    return kept, [row_of[path] for path in kept]
