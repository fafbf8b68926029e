"""Masks of COCO: its instances, drawn as one map of categories for each image; what no instance covers is background.

Category ids have gaps; a class's index is the rank of its id, from 1. Where instances overlap, the smaller one lies on
top. Crowd regions count as their category.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clipdistill.datasets import prompt_names
from clipdistill.datasets.coco import entries
from clipdistill.datasets.masks.masked import Mask, MaskedImages, Size, existing_files, masked_images, require_size
from clipdistill.datasets.masks.outlines import Outline, covered, pack
from clipdistill.datasets.raw import read_text
from clipdistill.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

_KEPT = frozenset({"images", "annotations", "categories", "id", "file_name", "width", "height", "name"})


class _Instance(NamedTuple):
    """An annotation, as little of it as drawing needs."""

    number: int
    image: int
    category: int
    outline: Outline


class _Picture(NamedTuple):
    """An image of the list."""

    number: int
    name: str
    size: Size


def read(root: Path, split: str, max_pixels: int) -> MaskedImages:
    """Read a split.

    Args:
        root: holds annotations/instances_{split}.json and the folder {split} with the images.
        split: for example val2014.
        max_pixels: `dataset.max_pixels`.

    Returns:
        All images of the list, ascending by number, those without instances too, with a background.

    Raises:
        DataError: a file is missing or not of this form.
    """
    path = root / "annotations" / f"instances_{split}.json"
    cure = f"get the instance annotations and the images of {split!r} from the COCO site, so that {path} is there"
    content = _load(path, cure)
    try:
        categories = dict(sorted((_whole(item, "id"), _text(item, "name")) for item in entries(content, "categories")))
        pictures = sorted(_picture(item) for item in entries(content, "images"))
        instances = _by_image(entries(content, "annotations"), categories)
        _require_listed(path, instances, {picture.number for picture in pictures})
    except KeyError as error:
        raise DataError(f"{path}: an entry has no {error}; is it COCO's instances file?") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not of COCO's form ({error})") from None
    ids = [f"{picture.number:012d}" for picture in pictures]
    if len(set(ids)) < len(ids) or len(set(categories.values())) < len(content["categories"]):
        raise DataError(f"{path} has an image or a category twice; take one release")
    paths = existing_files(root / split, [picture.name for picture in pictures], cure)
    drawing = _Drawing(path, pictures, instances, {number: index + 1 for index, number in enumerate(categories)})
    classes = prompt_names.with_prompts(list(categories.values()), {}, {})
    return masked_images(classes, True, ids, paths, drawing, max_pixels)


class _Drawing:
    """Masks that are drawn when they are asked for."""

    def __init__(
        self, path: Path, pictures: list[_Picture], instances: dict[int, list[_Instance]], index_of: Mapping[int, int]
    ) -> None:
        self._path, self._pictures, self._instances, self._index_of = path, pictures, instances, index_of

    def __call__(self, row: int, size: Size) -> Mask:
        picture = self._pictures[row]
        require_size(f"{self._path}, image {picture.number}", picture.size, size)
        mask = np.zeros(size[::-1], np.uint8)
        area_on_top = np.full(size[::-1], mask.size + 1, np.int64)
        for instance in self._instances.get(picture.number, []):
            try:
                inside = covered(instance.outline, size)
            except ValueError as error:
                raise DataError(f"{self._path}: annotation {instance.number} cannot be drawn: {error}") from None
            area = int(inside.sum())
            shown = inside & (area < area_on_top)
            mask[shown], area_on_top[shown] = self._index_of[instance.category], area
        return mask


def _by_image(annotations: list[Any], categories: Mapping[int, str]) -> dict[int, list[_Instance]]:
    found: dict[int, list[_Instance]] = defaultdict(list)
    for item in annotations:
        if not isinstance(item, _Instance):
            raise TypeError("an annotation has no segmentation")
        if item.category not in categories:
            raise ValueError(f"annotation {item.number} has category {item.category}, which is not in its list")
        found[item.image].append(item)
    return {image: sorted(items, key=lambda item: item.number) for image, items in found.items()}


def _require_listed(path: Path, instances: Mapping[int, list[_Instance]], pictures: set[int]) -> None:
    """Refuse outlines that are all of images not in the list: every mask would be background."""
    lost = sum(len(items) for image, items in instances.items() if image not in pictures)
    if lost and pictures and not instances.keys() & pictures:
        raise ValueError("all of its annotations are of images that it does not list")
    if lost:
        logger.warning("%s: %d annotations are of images that it does not list", path, lost)


def _picture(entry: dict[str, Any]) -> _Picture:
    return _Picture(_whole(entry, "id"), _text(entry, "file_name"), (_whole(entry, "width"), _whole(entry, "height")))


def _load(path: Path, cure: str) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, cure), object_hook=_slim)
    except KeyError as error:
        raise DataError(f"{path}: an annotation has no {error}; is it COCO's instances file?") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON, or not of COCO's form ({error}); get it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not of COCO's form (a list of images, annotations and categories)")
    return content


def _slim(entry: dict[str, Any]) -> object:
    """Pack outlines as soon as they are read: as lists of Python's numbers they would take ten times the file."""
    if "counts" in entry:
        return entry
    if "segmentation" in entry:
        number, image, category = (_whole(entry, key) for key in ("id", "image_id", "category_id"))
        try:
            return _Instance(number, image, category, pack(entry["segmentation"]))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"segmentation of annotation {number}: {error}") from None
    return {key: value for key, value in entry.items() if key in _KEPT}


def _whole(entry: Any, key: str) -> int:  # noqa: ANN401 - whatever JSON holds
    """A whole number; JSON's true is none, though Python takes it for 1."""
    value = entry[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key} is {value!r}, no whole number")
    return value


def _text(entry: Any, key: str) -> str:  # noqa: ANN401 - as above
    value = entry[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}, no text")
    return value
