"""The `formatted_*.npy` layout of the single-positive literature, read and written."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipdistill import store
from clipdistill.datasets import prompt_names
from clipdistill.datasets.raw import Fence, Problem, RawDataset, RawSplit, admit, assemble, path_id
from clipdistill.datasets.table import SPLITS, Split
from clipdistill.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipdistill.datasets.table import ClassName, Labels
    from clipdistill.params import DatasetParams

# The layout has no names; these numbers of classes each belong to one published data set.
_BY_COUNT = {
    len(names): names for names in (prompt_names.VOC_CLASSES, prompt_names.COCO_CLASSES, prompt_names.NUSWIDE_CLASSES)
}


def read(params: DatasetParams) -> RawDataset:
    """Read both splits.

    Args:
        params: `root` holds formatted_{split}_images.npy (1-D, unicode) and formatted_{split}_labels.npy
            ([N, C] of 0 and 1), where `train` and `val` name the splits; class names come from its
            classes.txt, else from the known list of 20 (VOC), 80 (COCO) or 81 (NUS-WIDE) classes; `images` is
            the image root.

    Returns:
        The data set; an image's id is its path without suffix.

    Raises:
        DataError: a file is missing or of another form, or the number of classes is unknown or not that of
            the names.
        ParamsError: a prompt name is for an unknown class.
    """
    root = Path(params.root)
    if not params.images or not Path(params.images).is_dir():
        raise DataError(
            f"dataset.images = {params.images!r} is no folder: reader formatted needs the one to which "
            "the image paths are relative"
        )
    arrays = {split: _arrays(root, params.train if split == "train" else params.val) for split in SPLITS}
    widths = {labels.shape[1] for _, labels in arrays.values()}
    if len(widths) != 1:
        raise DataError(f"{root}: the splits have {' and '.join(map(str, sorted(widths)))} classes; take one data set")
    classes = _classes(root, params, widths.pop())
    problems: list[Problem] = []
    fence = Fence(Path(params.images))
    splits = {split: _split(split, fence, *arrays[split], problems) for split in SPLITS}
    return assemble(fence.folder, classes, splits, problems)


def write_formatted(folder: Path, split: str, table_paths: Sequence[str], labels: Labels) -> None:
    """Write one split in this layout.

    Args:
        folder: where both files go.
        split: name in the file names.
        table_paths: image paths relative to the image root [N].
        labels: int8 [N, C] of 0 and 1.

    Raises:
        DataError: a label is unknown, which the layout cannot say, or the numbers of rows differ.
        ArtifactError: the folder cannot be written.
    """
    if len(table_paths) != len(labels):
        raise DataError(f"{split}: {len(table_paths)} image paths, but {len(labels)} rows of labels")
    if ((labels != 0) & (labels != 1)).any():
        raise DataError(
            f"{split}: some labels are unknown (-1), which formatted_*.npy cannot say; for VOC set "
            "dataset.difficult to negative or positive"
        )
    contents = {"images": np.array(table_paths, dtype=np.str_), "labels": labels.astype(np.float64)}
    for what, array in contents.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        store.write_atomically(_file(folder, split, what), buffer.getvalue())


def _file(folder: Path, split: str, what: str) -> Path:
    return folder / f"formatted_{split}_{what}.npy"


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path} is missing: put the image paths and the labels of both splits there, in this layout"
        ) from None
    # NumPy reads the header with Python's tokenizer and an archive as a zip file: their errors are many.
    except Exception as error:
        raise DataError(f"{path} is not a plain NumPy array ({error}); pickled objects are not read") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an archive of arrays, not one array")
    return array


def _arrays(root: Path, split: str) -> tuple[list[str], Labels]:
    path, names = _file(root, split, "images"), _load(_file(root, split, "images"))
    if names.dtype.kind != "U" or names.ndim != 1 or not names.dtype.itemsize:
        raise DataError(f"{path} has type {names.dtype} and {names.ndim} axes; image paths are unicode with one axis")
    codes = names.view(np.dtype(np.uint32).newbyteorder(names.dtype.byteorder))
    if (codes > sys.maxunicode).any():
        raise DataError(f"{path} holds characters that there are none of: it is damaged, write it again")
    path, labels = _file(root, split, "labels"), _load(_file(root, split, "labels"))
    if labels.dtype.kind not in "biuf" or labels.ndim != 2:
        raise DataError(f"{path} has type {labels.dtype} and {labels.ndim} axes; labels are numbers with two axes")
    if len(labels) != len(names):
        raise DataError(f"{path} has {len(labels)} rows, but there are {len(names)} image paths")
    lawful = (labels == 0) | (labels == 1)
    if not lawful.all():
        row = int(np.flatnonzero(~lawful.all(axis=1))[0])
        raise DataError(
            f"{path}: row {row} holds {labels[row][~lawful[row]][0]}; labels are 0 and 1 (observed labels, "
            "which have -1, are another file)"
        )
    return names.tolist(), labels.astype(np.int8)


def _classes(root: Path, params: DatasetParams, count: int) -> list[ClassName]:
    path = root / prompt_names.CLASS_FILE
    if path.is_file():
        classes = prompt_names.read_class_file(path, params.prompt_names)
        if len(classes) != count:
            raise DataError(f"{path} names {len(classes)} classes, the labels have {count} columns")
        return classes
    if count not in _BY_COUNT:
        raise DataError(
            f"{root}: the labels have {count} columns, which is no known data set; add {path} with one class "
            "name a line, in column order"
        )
    known = prompt_names.VOC_PROMPTS if count == len(prompt_names.VOC_CLASSES) else {}
    return prompt_names.with_prompts(_BY_COUNT[count], known, params.prompt_names)


def _split(split: Split, fence: Fence, paths: list[str], labels: Labels, problems: list[Problem]) -> RawSplit:
    ids = [path_id(path) for path in paths]
    rows = admit(fence, split, ids, paths, problems)
    return RawSplit(ids, paths, labels).take(rows)
