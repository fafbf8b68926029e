"""COCO 2014 and 2017: image labels from the instance annotations.

A class is present where the image has any annotation of it, crowd regions included. Category ids have gaps;
a class's column is the rank of its id.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipdistill.datasets import prompt_names
from clipdistill.datasets.raw import Fence, Problem, RawDataset, RawSplit, admit, assemble, read_text
from clipdistill.datasets.table import SPLITS, Split
from clipdistill.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection

    from clipdistill.params import DatasetParams

_KEPT = frozenset({"images", "annotations", "categories", "id", "file_name", "image_id", "category_id", "name"})


def read(params: DatasetParams) -> RawDataset:
    """Read the instance annotations of both splits.

    Args:
        params: `root` holds annotations/instances_{split}.json, where `train` and `val` name the splits
            (train2014); `images`, or else `root`, holds the folders {split} with the images.

    Returns:
        The data set; the id of an image is its number, 12 digits. Images without any object are left out or
        kept as `empty_images` says, and counted in the notes.

    Raises:
        DataError: a file is missing or not of this form, or the splits have different categories.
        ParamsError: a prompt name is for an unknown class.
    """
    image_root = Path(params.images or params.root)
    contents = {
        "train": Instances(Path(params.root), image_root, params.train),
        "val": Instances(Path(params.root), image_root, params.val),
    }
    if contents["train"].categories != contents["val"].categories:
        raise DataError(
            f"{contents['train'].path} and {contents['val'].path} have different categories; take one release"
        )
    problems: list[Problem] = []
    keep_empty = params.empty_images == "keep"
    splits = {split: _read_split(contents[split], split, keep_empty, problems) for split in SPLITS}
    classes = prompt_names.with_prompts(list(contents["train"].categories.values()), {}, params.prompt_names)
    notes = {
        "images_without_objects": {split: content.empty for split, content in contents.items()},
        "images_without_objects_are": "kept" if keep_empty else "dropped",
        "annotations_of_unlisted_images": {split: content.orphans for split, content in contents.items()},
    }
    return assemble(image_root, classes, splits, problems, notes)


class Instances:
    """One annotation file.

    Attributes:
        path: the file.
        name: COCO's name of the split, which is also the folder of its images.
        images: that folder.
        categories: name by id, ascending ids.
        ids: image ids [N].
        files: file names [N].
        present: int8 [N, C], 1 where there is an annotation.
        unknown: an unlisted category id, by the id of the image that has it.
        empty: images without annotation.
        orphans: annotations whose image is not listed.
    """

    def __init__(self, root: Path, image_root: Path, name: str) -> None:
        self.path = root / "annotations" / f"instances_{name}.json"
        self.name = name
        self.images = image_root / name
        if not self.images.is_dir():
            raise DataError(f"{self.images} is missing: {_cure(self.path, self.images)}")
        # The polygons are most of the file; dropping them while it is read keeps the rest small.
        content = read_json(self.path, _cure(self.path, self.images), _KEPT)
        try:
            categories = [(number(item["id"]), text(item["name"])) for item in entries(content, "categories")]
            self.categories = dict(sorted(categories))
            if not categories or len(set(self.categories.values())) != len(categories):
                raise ValueError("no categories, or an id or a name twice")
            images = entries(content, "images")
            self.ids = [number(image["id"]) for image in images]
            self.files = [text(image["file_name"]) for image in images]
            objects = entries(content, "annotations")
            pairs = [(number(item["image_id"]), number(item["category_id"])) for item in objects]
            self._join(np.array(pairs, dtype=np.int64).reshape(-1, 2))
        except KeyError as error:
            raise DataError(f"{self.path}: an entry has no {error}; is it COCO's instances file?") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{self.path} is not of COCO's form ({error})") from None

    def _join(self, pairs: npt.NDArray[np.int64]) -> None:
        """Scatter annotations (image id, category id) [M, 2] into rows and columns."""
        unique, row_of = np.unique(np.array(self.ids, dtype=np.int64), return_inverse=True)
        rows, listed = _positions(unique, pairs[:, 0])
        columns, known = _positions(np.array(list(self.categories), dtype=np.int64), pairs[:, 1])
        present = np.zeros((len(unique), len(self.categories)), np.int8)
        present[rows[listed & known], columns[listed & known]] = 1
        self.present = present[row_of]
        self.unknown = dict(pairs[listed & ~known].tolist())
        self.orphans = int((~listed).sum())
        if self.orphans and self.ids and not listed.any():
            raise ValueError("all of its annotations are of images that it does not list")
        self.empty = len(unique) - len(np.unique(rows[listed]))


def _positions(
    ordered: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Where each wanted value stands in an ascending array, and whether it is there at all."""
    if not len(ordered):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), np.bool_)
    places = np.searchsorted(ordered, wanted).clip(max=len(ordered) - 1)
    return places, ordered[places] == wanted


def _cure(path: Path, images: Path) -> str:
    return (
        f"get the instance annotations and the images of {images.name!r} from the COCO site and unpack them "
        f"so that {path} and the folder {images} exist; dataset.train and dataset.val name the splits, for "
        "example train2014 and val2014"
    )


def read_json(path: Path, cure: str, kept: Collection[str]) -> dict[str, Any]:
    """Read one of COCO's annotation files.

    Args:
        path: file.
        cure: what to do where it is missing.
        kept: keys, at any depth; all others are dropped while the file is read.

    Raises:
        DataError: missing, too large, not JSON, or not an object.
    """
    try:
        content = json.loads(
            read_text(path, cure), object_hook=lambda entry: {key: entry[key] for key in entry if key in kept}
        )
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); get it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not of COCO's form (a list of images, annotations and categories)")
    return content


def entries(content: dict[str, Any], key: str) -> list[Any]:
    """One of the file's lists.

    Raises:
        KeyError: it is not there.
        TypeError: something else stands there: an object of objects would be read as an empty list, its keys dropped.
    """
    value = content[key]
    if not isinstance(value, list):
        raise TypeError(f"{key} is no list")
    return value


def number(value: object) -> int:
    """An id; JSON's true is none, though Python takes it for 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} stands where an integer id should be")
    return value


def text(value: object) -> str:
    """A name, and nothing but text."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} stands where a name should be")
    return value


def _read_split(content: Instances, split: Split, keep_empty: bool, problems: list[Problem]) -> RawSplit:
    kept = []
    objects = content.present.sum(axis=1)
    for row in range(len(content.ids)):
        if (category := content.unknown.get(content.ids[row])) is not None:
            detail = f"{content.path} has category {category}, which is not in its list"
            problems.append(Problem("unknown_class", split, content.files[row], detail))
        elif objects[row] or keep_empty:
            kept.append(row)
    ids = [f"{content.ids[row]:012d}" for row in kept]
    # The file name is checked as it stands: joined to the folder, an absolute one would look relative.
    names = [content.files[row] for row in kept]
    rows = admit(Fence(content.images), split, ids, names, problems)
    paths = [f"{content.name}/{names[row]}" for row in rows]
    return RawSplit([ids[row] for row in rows], paths, content.present[[kept[row] for row in rows]])
