"""Class names: lists in files, and how a prompt says a name."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from clipdistill.datasets.raw import read_text
from clipdistill.datasets.table import ClassName
from clipdistill.errors import DataError, ParamsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CLASS_FILE = "classes.txt"


def listed(text: str) -> tuple[str, ...]:
    """Names that commas part, without the white space around them."""
    return tuple(name.strip() for name in text.split(","))


VOC_CLASSES = listed(
    """
    aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse,
    motorbike, person, pottedplant, sheep, sofa, train, tvmonitor
    """
)

COCO_CLASSES = listed(
    """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
    fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant,
    bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard,
    sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle,
    wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
    hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock,
    vase, scissors, teddy bear, hair drier, toothbrush
    """
)

NUSWIDE_CLASSES = listed(
    """
    airport, animal, beach, bear, birds, boats, book, bridge, buildings, cars, castle, cat,
    cityscape, clouds, computer, coral, cow, dancing, dog, earthquake, elk, fire, fish, flags,
    flowers, food, fox, frost, garden, glacier, grass, harbor, horses, house, lake, leaf, map,
    military, moon, mountain, nighttime, ocean, person, plane, plants, police, protest, railroad,
    rainbow, reflection, road, rocks, running, sand, sign, sky, snow, soccer, sports, statue,
    street, sun, sunset, surf, swimmers, tattoo, temple, tiger, tower, town, toy, train, tree,
    valley, vehicle, water, waterfall, wedding, whales, window, zebra
    """
)

# Line breaks and other control characters, and halves of characters, which no file can hold.
_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})

# Only VOC writes words together. The other lists say their classes as a prompt would.
VOC_PROMPTS = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}


def with_prompts(names: Sequence[str], known: Mapping[str, str], overrides: Mapping[str, str]) -> list[ClassName]:
    """Give each class its prompt name.

    Args:
        names: class names in column order.
        known: the data set's own prompt names, by class; a class that is not here is its own prompt name.
        overrides: `dataset.prompt_names`, over all others.

    Returns:
        Classes in the same order.

    Raises:
        DataError: a name is blank, or holds a line break or another control character.
        ParamsError: an override names a class that the data set has not.
    """
    for name in names:
        if not name.strip() or any(unicodedata.category(character) in _CONTROL for character in name):
            raise DataError(f"class name {name!r} is blank or holds a control character; rename the class")
    if unknown := sorted(set(overrides) - set(names)):
        raise ParamsError(
            f"dataset.prompt_names.{unknown[0]}: the data set has no such class; it has {', '.join(names)}"
        )
    return [ClassName(name, overrides.get(name, known.get(name, name))) for name in names]


def read_class_file(path: Path, overrides: Mapping[str, str]) -> list[ClassName]:
    """Read a class list: a name a line, and after a tab its prompt name where that differs.

    Blank lines and lines that begin with # do not count.

    Args:
        path: text file, UTF-8.
        overrides: `dataset.prompt_names`.

    Returns:
        Classes in the order of the lines, which is the order of the columns.

    Raises:
        DataError: missing, empty, a name twice, or an empty name or prompt name (the text names the line), or a name
            with a control character.
        ParamsError: an override names a class that is not in the list.
    """
    cure = "write one class name a line there, for example 'cat', or 'tvmonitor<TAB>tv monitor' for the prompts"
    known: dict[str, str] = {}
    for line in read_text(path, cure).split("\n"):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, *prompt = (part.strip() for part in line.split("\t"))
        if not name or len(prompt) > 1 or prompt == [""]:
            raise DataError(f"{path}: {line!r} is not 'name' or 'name<TAB>prompt name'")
        if name in known:
            raise DataError(f"{path}: class {name!r} stands twice; remove one")
        known[name] = prompt[0] if prompt else name
    if not known:
        raise DataError(f"{path} names no class: {cure}")
    return with_prompts(list(known), known, overrides)
