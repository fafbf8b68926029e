"""PASCAL VOC 2007 and 2012, and any data set in their layout.

An image has one of three values for a class, as in the development kit's ImageSets/Main files: 1 where at
least one object of the class is not "difficult", 0 where all objects of it are, -1 where there is none.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
import numpy as np
import numpy.typing as npt
from defusedxml.common import DefusedXmlException

from clipdistill.datasets import open_vocabulary, prompt_names
from clipdistill.datasets.raw import Fence, Problem, RawDataset, RawSplit, Refusal, admit, assemble, read_lines
from clipdistill.datasets.table import SPLITS, Split
from clipdistill.errors import DataError, ParamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from clipdistill.datasets.table import ClassName, Labels
    from clipdistill.params import DatasetParams

Values = npt.NDArray[np.int8]
Key = TypeVar("Key")
Combinations = dict[tuple[str, str], "ClassName"]

# The official training and test images of 2007 come in two archives, those of 2012 in one.
_ARCHIVES = {
    2007: {"trainval": "VOCtrainval_06-Nov-2007.tar", "test": "VOCtest_06-Nov-2007.tar"},
    2012: {"trainval": "VOCtrainval_11-May-2012.tar"},
}
_DIFFICULT_ONLY = {"negative": 0, "positive": 1, "ignore": -1}


class _Object(NamedTuple):
    """What is read of an object: no place, so that an image has each of them once."""

    name: str
    colour: str
    difficult: bool


def read(params: DatasetParams) -> RawDataset:
    """Read the annotations of both splits.

    Args:
        params: `root` holds VOCdevkit/VOC{year} or VOC{year}, or is such a folder; `train` and `val` name
            lists in ImageSets/Main; a classes.txt in that folder, or in VOCdevkit beside it, names other classes
            than VOC's. There attributes.txt and unseen.txt are, where the open vocabulary is that of attributes: a
            label for each colour that objects may have (`<color>`) and each class.

    Returns:
        The data set; an image is at {id}.jpg below JPEGImages.

    Raises:
        DataError: the layout or a list is missing, or a list contradicts itself or another.
        ParamsError: `year` is neither 2007 nor 2012, or a prompt name is for an unknown class.
    """
    if params.year not in _ARCHIVES:
        raise ParamsError(f"dataset.year: VOC is read for 2007 and 2012, found {params.year}")
    base = _base(params)
    folder = _class_folder(base, params)
    classes = _classes(folder, params)
    combinations: Combinations = {}
    if _has_attributes(folder, params):
        combinations = open_vocabulary.read_combinations(folder, classes)
    problems: list[Problem] = []
    splits = {split: _read_split(base, split, params, classes, combinations, problems) for split in SPLITS}
    return assemble(base / "JPEGImages", classes, splits, problems, open_classes=list(combinations.values()))


def apply_policy(values: Values, difficult: Literal["negative", "positive", "ignore"]) -> Labels:
    """Turn values of the development kit into labels.

    Args:
        values: int8 [N, C]: 1 present, 0 only difficult objects, -1 absent.
        difficult: what 0 becomes: absent, present, or left out.

    Returns:
        int8 [N, C]: 1 present, 0 absent, -1 left out.
    """
    return np.where(values == 0, _DIFFICULT_ONLY[difficult], values == 1).astype(np.int8)


def _base(params: DatasetParams) -> Path:
    root = Path(params.root)
    found = _find_base(root, params.year)
    wanted = [name for name in (params.train, params.val) if not (found and _list_file(found, name).is_file())]
    if wanted and params.download:
        _download(root, params.year, wanted)
        found = _find_base(root, params.year)
    if found is None:
        raise DataError(f"{root}: no VOC {params.year} here (a folder with JPEGImages): {_cure(params)}")
    return found


def _find_base(root: Path, year: int) -> Path | None:
    places = (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root)
    return next((place for place in places if (place / "JPEGImages").is_dir()), None)


def _list_file(base: Path, name: str) -> Path:
    return base / "ImageSets" / "Main" / f"{name}.txt"


def _cure(params: DatasetParams) -> str:
    archives = " and ".join(_ARCHIVES[params.year].values())
    place = Path(params.root) / "VOCdevkit" / f"VOC{params.year}"
    return (
        f"get {archives} from the PASCAL VOC site and unpack below {params.root}, so that {place} holds "
        "JPEGImages, Annotations and ImageSets; or set dataset.download: true"
    )


def _download(root: Path, year: int, wanted: Sequence[str]) -> None:
    from torchvision.datasets import VOCDetection  # noqa: PLC0415 - slow, and only needed here

    archives = {"test" if year == 2007 and name == "test" else "trainval" for name in wanted}
    for archive in sorted(archives):
        try:
            root.mkdir(parents=True, exist_ok=True)
            VOCDetection(root=str(root), year=str(year), image_set=archive, download=True)
        except (OSError, RuntimeError, tarfile.TarError) as error:
            raise DataError(
                f"{root}: download of {_ARCHIVES[year][archive]} failed ({error}); get it by other means and "
                f"unpack it below {root}"
            ) from error


def _class_folder(base: Path, params: DatasetParams) -> Path:
    """Where lists of one's own lie: the folder with classes.txt, in the release or beside it, else the release."""
    places = [base] if base == Path(params.root) else [base, base.parent]
    return next((place for place in places if (place / prompt_names.CLASS_FILE).is_file()), base)


def _has_attributes(folder: Path, params: DatasetParams) -> bool:
    """Whether the open vocabulary is that of attributes: as the parameters say, or because there is a list of them."""
    found = (folder / open_vocabulary.ATTRIBUTE_FILE).is_file()
    auto = params.open_vocabulary == "auto" and params.annotations == "xml" and not params.unseen
    return params.open_vocabulary == "attributes" or (auto and found)


def _classes(folder: Path, params: DatasetParams) -> list[ClassName]:
    """The twenty of VOC, or those of a list in the folder."""
    own = folder / prompt_names.CLASS_FILE
    if own.is_file():
        return prompt_names.read_class_file(own, params.prompt_names)
    return prompt_names.with_prompts(prompt_names.VOC_CLASSES, prompt_names.VOC_PROMPTS, params.prompt_names)


def _read_split(
    base: Path,
    split: Split,
    params: DatasetParams,
    classes: list[ClassName],
    combinations: Combinations,
    problems: list[Problem],
) -> RawSplit:
    name = params.train if split == "train" else params.val
    path = _list_file(base, name)
    ids = read_lines(path, f"dataset.{split} = {name!r} must name a list there; {_cure(params)}")
    for image_id in ids:
        if len(image_id.split()) != 1:
            raise DataError(f"{path}: {image_id!r} is not one image id; dataset.{split} must name a list of images")
    rows = admit(Fence(base / "JPEGImages"), split, ids, [f"{image_id}.jpg" for image_id in ids], problems)
    ids = [ids[row] for row in rows]
    column = {item.name: index for index, item in enumerate(classes)}
    open_values = None
    if params.annotations == "xml":
        contents, refused = _read_annotations(base, ids, column)
        values = _values(contents, column, lambda item: item.name)
        if combinations:
            open_column = {pair: index for index, pair in enumerate(combinations)}
            open_values = _values(contents, open_column, lambda item: (item.colour, item.name))
    else:
        values, refused = _values_from_main(base, name, ids, column)
    problems.extend(Problem(kind, split, ids[row], detail) for row, (kind, detail) in sorted(refused.items()))
    part = RawSplit(
        ids,
        [f"{image_id}.jpg" for image_id in ids],
        apply_policy(values, params.difficult),
        None if open_values is None else apply_policy(open_values, params.difficult),
    )
    return part.take([row for row in range(len(ids)) if row not in refused])


def _read_annotations(
    base: Path, ids: list[str], column: dict[str, int]
) -> tuple[list[set[_Object]], dict[int, Refusal]]:
    """Objects of N images from Annotations/*.xml, and what is wrong with the rows that have none."""
    fence = Fence(base / "Annotations", "missing_annotation")
    contents: list[set[_Object]] = [set() for _ in ids]
    refused: dict[int, Refusal] = {}
    for row, image_id in enumerate(ids):
        name = f"{image_id}.xml"
        if refusal := fence.check(name):
            refused[row] = refusal
            continue
        objects = _objects(fence.folder / name, column)
        if isinstance(objects, tuple):
            refused[row] = objects
        else:
            contents[row] = objects
    return contents, refused


def _values(
    contents: Sequence[Collection[_Object]], column: Mapping[Key, int], key: Callable[[_Object], Key]
) -> Values:
    """Values int8 [N, columns] of images by what their objects are; an object whose key has no column has no label."""
    values = np.full((len(contents), len(column)), -1, np.int8)
    for row, objects in enumerate(contents):
        # Objects that are not difficult come last and so win over difficult ones with the same label.
        for item in sorted(objects, key=lambda item: not item.difficult):
            if (index := column.get(key(item))) is not None:
                values[row, index] = 0 if item.difficult else 1
    return values


def _objects(path: Path, column: dict[str, int]) -> set[_Object] | Refusal:
    """An image's objects, or what is wrong with the file."""
    try:
        root = defusedxml.ElementTree.parse(path, forbid_dtd=True).getroot()
        objects = {_object(element) for element in root.iterfind("object")} if root is not None else set()
    except DefusedXmlException:
        return "broken_annotation", f"{path} declares a document type; not read"
    except (ParseError, ValueError, LookupError, OSError) as error:
        return "broken_annotation", f"{path} cannot be read ({error})"
    if unknown := sorted({item.name for item in objects} - set(column)):
        return "unknown_class", f"{path} names {unknown[0]!r}, which is no class"
    return objects


def _object(element: Element) -> _Object:
    name = (element.findtext("name") or "").strip()
    colour = (element.findtext("color") or "").strip()
    difficult = (element.findtext("difficult") or "0").strip()
    if not name:
        raise ValueError("an object without a name")
    if difficult not in ("0", "1"):
        raise ValueError(f"difficult is {difficult!r}, neither 0 nor 1")
    return _Object(name, colour, difficult == "1")


def _values_from_main(
    base: Path, list_name: str, ids: list[str], column: dict[str, int]
) -> tuple[Values, dict[int, Refusal]]:
    """Values int8 [N, C] from ImageSets/Main/{class}_{list}.txt, and what is wrong with the others."""
    fence = Fence(base / "ImageSets" / "Main", "missing_annotation")
    values = np.full((len(ids), len(column)), -1, np.int8)
    refused: dict[int, Refusal] = {}
    for item, index in column.items():
        file_name = f"{item}_{list_name}.txt"
        if refusal := fence.check(file_name):
            raise DataError(f"class {item!r}: {refusal[1]}; or set dataset.annotations: xml")
        known = _read_main(fence.folder / file_name)
        for row, image_id in enumerate(ids):
            if image_id in known:
                values[row, index] = known[image_id]
            else:
                refused.setdefault(row, ("missing_annotation", f"not in {file_name}"))
    return values, refused


def _read_main(path: Path) -> dict[str, int]:
    known: dict[str, int] = {}
    for line in read_lines(path, "it belongs to the release"):
        image_id, *value = line.split()
        if len(value) != 1 or value[0] not in ("-1", "0", "1"):
            raise DataError(f"{path}: {line!r} is not an image id and one of -1, 0, 1")
        if known.setdefault(image_id, int(value[0])) != int(value[0]):
            raise DataError(f"{path}: {image_id} stands twice with different values")
    return known
