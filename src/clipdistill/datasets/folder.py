"""One's own images: a folder, a list of class names, and labels where there are any."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from clipdistill.datasets import prompt_names
from clipdistill.datasets.images import SUFFIXES
from clipdistill.datasets.raw import Fence, Problem, ProblemKind, RawDataset, RawSplit, admit, assemble, read_text
from clipdistill.datasets.table import SPLITS, Split
from clipdistill.errors import DataError, ParamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from clipdistill.params import DatasetParams

LABEL_FILE = "labels.csv"

_VALUES = {"1": 1, "0": 0, "-1": -1, "": -1}


def read(params: DatasetParams) -> RawDataset:
    """Find the images and read classes.txt and, where it is there, labels.csv.

    Args:
        params: `root` holds the images, at any depth, and classes.txt. Where its sub-folders `train` and
            `val` (by the names that the parameters give) both hold images, they are the splits; else
            `val_fraction` of all images is held out, by a hash of the path, so that an image keeps its side
            when others are added.

    Returns:
        The data set; an image's id is its path below `root`. An image without labels has -1 in all classes.

    Raises:
        DataError: no images or no class list, or labels.csv is not of its form.
        ParamsError: `val_fraction` is 0 and no folder is the evaluation split, or a prompt name is for an
            unknown class.
    """
    root = Path(params.root)
    files, links = _walk(root)
    classes = prompt_names.read_class_file(root / prompt_names.CLASS_FILE, params.prompt_names)
    paths = [path for path in files if PurePosixPath(path).suffix.lower() in SUFFIXES]
    if not paths:
        raise DataError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}): put them there, at any depth")
    side = _sides(paths, params)
    table = _read_labels(root, [item.name for item in classes])
    problems = [
        Problem("outside_root", side(path) or "train", path, "a link to a folder is not followed; copy the folder")
        for path in links
    ]
    problems += [Problem(kind, side(path) or "train", path, detail) for kind, path, detail in table.faults]
    problems += _strays(table, set(paths), root, side)
    refused = {path for _, path, _ in table.faults}
    sound = [path for path in paths if path not in refused]
    splits = {split: _take(split, [p for p in sound if side(p) == split], root, table, problems) for split in SPLITS}
    notes = {
        "other_files": len(files) - len(paths),
        "images_outside_splits": sum(side(path) is None for path in paths),
        "images_without_labels": sum(len(part.ids) - len(table.rows.keys() & part.ids) for part in splits.values()),
    }
    return assemble(root, classes, splits, problems, notes)


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Files below the root and links to folders, hidden ones left out, sorted."""

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be listed ({error.strerror}): dataset.root is a folder with images and "
            f"{prompt_names.CLASS_FILE}"
        ) from error

    files, links = [], []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        here = Path(folder)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [(here / name).relative_to(root).as_posix() for name in names if not name.startswith(".")]
        links += [(here / name).relative_to(root).as_posix() for name in subfolders if (here / name).is_symlink()]
    return sorted(files), sorted(links)


def _sides(paths: Collection[str], params: DatasetParams) -> Callable[[str], Split | None]:
    """The rule that gives a path its split, or None where it belongs to none."""
    prefixes: dict[Split, str] = {"train": f"{params.train}/", "val": f"{params.val}/"}
    if all(any(path.startswith(prefix) for path in paths) for prefix in prefixes.values()):
        return lambda path: next((split for split in SPLITS if path.startswith(prefixes[split])), None)
    if params.val_fraction == 0:
        raise ParamsError(
            "dataset.val_fraction: 0 leaves no evaluation split; set it above 0, or put images in two "
            f"folders below {params.root} and name them in dataset.train and dataset.val"
        )
    held_out = {path for path in paths if _position(path) < params.val_fraction}
    if len(paths) > 1 and not held_out:
        held_out = {min(paths, key=_position)}
    if len(held_out) == len(paths):
        held_out.remove(max(paths, key=_position))
    return lambda path: "val" if path in held_out else "train"


def _position(path: str) -> float:
    """A number in [0, 1) that depends on the path alone."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=6).digest()) / 2**48


@dataclass(frozen=True, slots=True)
class _LabelTable:
    """Labels by path, C values each, and rows that could not be read: kind, path, what is wrong."""

    classes: int
    rows: dict[str, list[int]] = field(default_factory=dict)
    faults: list[tuple[ProblemKind, str, str]] = field(default_factory=list)


def _read_labels(root: Path, classes: list[str]) -> _LabelTable:
    path = root / LABEL_FILE
    table = _LabelTable(len(classes))
    if not path.exists():
        return table
    reader = csv.reader(io.StringIO(read_text(path, "save it again")), strict=True)
    try:
        row_of = _row_reader(path, next(reader, []), classes)
        for cells in reader:
            if cells:
                _add(table, cells[0].removeprefix("./"), cells, row_of, reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not CSV ({error})") from None
    return table


def _add(table: _LabelTable, path: str, cells: list[str], row_of: Callable[[list[str]], list[int]], line: int) -> None:
    where = f"{LABEL_FILE} line {line}"
    if path in table.rows:
        table.faults.append(("duplicate_id", path, f"{where}: a second row for this image"))
        return
    try:
        table.rows[path] = row_of(cells[1:])
    except KeyError as error:
        table.faults.append(("unknown_class", path, f"{where}: {error} is not in {prompt_names.CLASS_FILE}"))
    except ValueError as error:
        table.faults.append(("broken_annotation", path, f"{where}: {error}"))


def _row_reader(path: Path, header: list[str], classes: list[str]) -> Callable[[list[str]], list[int]]:
    """The function that turns the cells after the path into C labels, as the header asks.

    It raises KeyError for a class that is unknown and ValueError for cells that mean nothing.
    """
    column = {name: index for index, name in enumerate(classes)}

    def from_names(cells: list[str]) -> list[int]:
        if len(cells) != 1:
            raise ValueError(f"{len(cells) + 1} cells, the header has 2")
        row = [0] * len(classes)
        for name in filter(None, (part.strip() for part in cells[0].split(";"))):
            row[column[name]] = 1
        return row

    def from_values(cells: list[str]) -> list[int]:
        if len(cells) != len(named):
            raise ValueError(f"{len(cells) + 1} cells, the header has {len(header)}")
        row = [-1] * len(classes)
        for name, cell in zip(named, cells, strict=True):
            if cell.strip() not in _VALUES:
                raise ValueError(f"{name} is {cell!r}, none of 1, 0, -1 and empty")
            row[column[name]] = _VALUES[cell.strip()]
        return row

    named = [name.strip() for name in header[1:]]
    if header[:1] == ["path"] and named == ["labels"] and "labels" not in column:
        return from_names
    strange = [name for name in named if name not in column]
    if header[:1] != ["path"] or not named or strange or len(set(named)) != len(named):
        raise DataError(
            f"{path}: the header {','.join(header)!r} must be 'path,labels', or 'path' and names of "
            f"{prompt_names.CLASS_FILE}, each once{f'; {strange[0]!r} is not there' if strange else ''}"
        )
    return from_values


def _strays(table: _LabelTable, images: set[str], root: Path, side: Callable[[str], Split | None]) -> list[Problem]:
    """Rows of labels whose image was not found."""
    fence, problems = Fence(root), []
    for path in table.rows:
        if path not in images:
            no_image: tuple[ProblemKind, str] = (
                "missing_image",
                "not a visible file with the suffix of an image",
            )
            kind, detail = fence.check(path) or no_image
            problems.append(Problem(kind, side(path) or "train", path, f"{LABEL_FILE}: {detail}"))
    return problems


def _take(split: Split, paths: list[str], root: Path, table: _LabelTable, problems: list[Problem]) -> RawSplit:
    kept = [paths[row] for row in admit(Fence(root), split, paths, paths, problems)]
    unknown = [-1] * table.classes
    labels = np.array([table.rows.get(path, unknown) for path in kept], np.int8)
    return RawSplit(kept, kept, labels.reshape(-1, table.classes))
