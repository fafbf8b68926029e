"""NUS-WIDE as its publisher gives it out: the official lists and the 81 concepts that people labelled.

Its open vocabulary is the usual one: the concepts are unseen, and of the 1,000 tags that Flickr's users gave, the 925
that are no concept are seen. So seen labels are as noisy as tags are, and unseen ones were judged by people.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipdistill.datasets import open_vocabulary, prompt_names
from clipdistill.datasets.raw import Fence, Problem, RawDataset, RawSplit, admit, assemble, path_id, read_lines
from clipdistill.datasets.table import SPLITS, Split
from clipdistill.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipdistill.datasets.table import ClassName, Labels
    from clipdistill.params import DatasetParams

_TAGS = "TagList1k.txt"
_OPEN = (925, 81)


def read(params: DatasetParams) -> RawDataset:
    """Read the lists and the human labels.

    Args:
        params: `root` holds ImageList, AllLabels and ConceptsList, and NUS_WID_Tags where the open vocabulary is
            nuswide-925-81; `train` and `val` name lists (Train, Test: the file ImageList/TrainImagelist.txt);
            `images`, or else {root}/Flickr, holds the images.

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
    classes = prompt_names.with_prompts(names, {}, params.prompt_names)
    open_classes: list[ClassName] = []
    open_labels = None
    if params.open_vocabulary == "nuswide-925-81":
        open_classes, open_labels = _open_vocabulary(root, classes, labels)
    problems: list[Problem] = []
    splits = {}
    for split in SPLITS:
        listed = _image_list(root, params.train if split == "train" else params.val)
        paths, rows = _read_split(listed, split, Fence(image_root), row_of, problems)
        open_part = None if open_labels is None else open_labels[rows]
        splits[split] = RawSplit([path_id(path) for path in paths], paths, labels[rows], open_part)
    return assemble(image_root, classes, splits, problems, open_classes=open_classes)


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


def _open_vocabulary(root: Path, concepts: Sequence[ClassName], labels: Labels) -> tuple[list[ClassName], Labels]:
    """Put the tags that are no concept before the concepts.

    Args:
        root: holds the tags.
        concepts: unseen.
        labels: int8 [images, concepts], their ground truth.

    Returns:
        L labels, in the order of TagList1k.txt and then of the concepts, and their ground truth int8 [images, L].
    """
    tags = read_lines(_tag_list(root), _tag_cure(root))
    unseen = {item.name for item in concepts}
    columns = [column for column, tag in enumerate(tags) if tag not in unseen]
    if len(set(tags)) != len(tags) or (len(columns), len(concepts)) != _OPEN:
        raise DataError(
            f"{_tag_list(root)} has {len(tags)} tags, {len(set(tags))} of them different and {len(columns)} not among "
            f"the {len(concepts)} concepts of ConceptsList/Concepts81.txt; dataset.open_vocabulary: nuswide-925-81 is "
            f"{_OPEN[0]} tags and {_OPEN[1]} concepts; get both lists again"
        )
    seen = prompt_names.with_prompts([tags[column] for column in columns], {}, {})
    found = np.empty((len(labels), len(seen) + len(concepts)), np.int8)
    _read_tags(root / "NUS_WID_Tags" / "AllTags1k.txt", _tag_cure(root), columns, len(tags), found[:, : len(seen)])
    found[:, len(seen) :] = labels
    return open_vocabulary.seen_first([*seen, *(replace(item, seen=False) for item in concepts)]), found


def _tag_list(root: Path) -> Path:
    """The list of tags, which lies with the tags or, in some copies, with the list of concepts."""
    places = [root / folder / _TAGS for folder in ("NUS_WID_Tags", "ConceptsList")]
    return next((place for place in places if place.is_file()), places[0])


def _tag_cure(root: Path) -> str:
    return (
        f"ask the publisher of NUS-WIDE for the tags and unpack them so that {root / 'NUS_WID_Tags'} holds "
        f"AllTags1k.txt and {_TAGS} (which may lie in ConceptsList as well); or set dataset.open_vocabulary: classes"
    )


def _read_tags(path: Path, cure: str, columns: Sequence[int], width: int, into: Labels) -> None:
    """Read some columns of a table of 0 and 1, a line an image, which is never in memory as a whole.

    Args:
        path: each line has `width` values, each with a tab after it.
        cure: what to do where it is missing.
        columns: which of them to keep, in this order.
        width: number of values a line.
        into: int8 [images, columns], is filled.

    Raises:
        DataError: the file is missing, or has other numbers of lines or values, or another value.
    """
    row = 0
    try:
        with path.open("rb") as stream:
            # A lawful line is shorter: what has no line ends comes in pieces, and is refused.
            for number, line in enumerate(iter(lambda: stream.readline(4 * width + 1024), b""), start=1):
                if not line.strip():
                    continue
                if row < len(into):
                    into[row] = _tag_row(line, width, f"{path}: line {number}")[columns]
                row += 1
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is missing: {cure}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): {cure}") from None
    if row != len(into):
        raise DataError(f"{path} has {row} lines, ImageList/Imagelist.txt has {len(into)}; get both again")


def _tag_row(line: bytes, width: int, where: str) -> Labels:
    """The values of a line, int8 [width]."""
    cells = line.split()
    if len(cells) != width:
        raise DataError(f"{where} has {len(cells)} values, {_TAGS} has {width} tags; get both again")
    if wrong := set(cells) - {b"0", b"1"}:
        cell = min(wrong)
        raise DataError(
            f"{where}, value {cells.index(cell) + 1} is {ascii(cell[:20])[1:]}, neither 0 nor 1; get it again"
        )
    return np.frombuffer(b"".join(cells), np.int8) - np.int8(ord("0"))


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
