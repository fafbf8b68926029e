"""Open vocabularies: labels that training sees, and others that it does not.

In each of them the seen labels come first, then the unseen ones, both in the data set's own order: the columns of
zero-shot evaluation are the last ones, those of the generalised kind are all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clipdistill.datasets import prompt_names
from clipdistill.datasets.prompt_names import COCO_CLASSES, VOC_CLASSES, listed
from clipdistill.datasets.raw import read_lines
from clipdistill.errors import DataError, ParamsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from clipdistill.datasets.raw import RawSplit
    from clipdistill.datasets.table import ClassName, Labels
    from clipdistill.params import DatasetParams

ATTRIBUTE_FILE = "attributes.txt"
UNSEEN_FILE = "unseen.txt"

# The split of Zero-Shot Object Detection (Bansal et al., 2018), which has 65 of the 80 classes.
_COCO_SEEN = listed(
    """
    person, bicycle, car, motorcycle, train, truck, boat, bench, bird, horse, sheep, bear, zebra,
    giraffe, backpack, handbag, suitcase, frisbee, skis, kite, surfboard, bottle, fork, spoon, bowl,
    banana, apple, sandwich, orange, broccoli, carrot, pizza, donut, chair, bed, toilet, tv, laptop,
    mouse, remote, microwave, oven, toaster, refrigerator, book, clock, vase, toothbrush
    """
)
_COCO_UNSEEN = listed(
    """
    airplane, bus, cat, dog, cow, elephant, umbrella, tie, snowboard, skateboard, cup, knife, cake,
    couch, keyboard, sink, scissors
    """
)
_VOC_UNSEEN = ("pottedplant", "sheep", "sofa", "train", "tvmonitor")

_SIBILANTS = ("s", "x", "z", "ch", "sh", "o")
_IRREGULAR = {"person": "people"}


@dataclass(frozen=True, slots=True)
class _Preset:
    """A split of the literature.

    Attributes:
        classes: those of the data set that it splits.
        left_out: classes that are neither seen nor unseen.
        unseen: classes that training does not see.
    """

    classes: frozenset[str]
    left_out: frozenset[str]
    unseen: frozenset[str]


_PRESETS = {
    "coco-48-17": _Preset(
        frozenset(COCO_CLASSES),
        frozenset(COCO_CLASSES) - frozenset(_COCO_SEEN + _COCO_UNSEEN),
        frozenset(_COCO_UNSEEN),
    ),
    "voc-15-5": _Preset(frozenset(VOC_CLASSES), frozenset(), frozenset(_VOC_UNSEEN)),
}


def choose(params: DatasetParams, classes: Sequence[ClassName]) -> list[ClassName]:
    """Choose the labels of an open vocabulary from the classes of a data set.

    Args:
        params: `open_vocabulary` is classes, auto, or a split of a known list of classes; `unseen`.
        classes: the data set's own, in column order.

    Returns:
        L labels, the seen ones first.

    Raises:
        ParamsError: `unseen` names no class, or all of them; or the classes are not those that are to be split.
    """
    names = {item.name for item in classes}
    if params.open_vocabulary in _PRESETS:
        preset = _PRESETS[params.open_vocabulary]
        if strange := sorted(names ^ preset.classes):
            where = "the data set" if strange[0] in names else "its list"
            raise ParamsError(
                f"dataset.open_vocabulary: {params.open_vocabulary} splits {len(preset.classes)} classes by name, "
                f"and {strange[0]!r} is only in {where}: use their data set, or set open_vocabulary to classes"
            )
    else:
        preset = _Preset(frozenset(names), frozenset(), frozenset(params.unseen))
    if unknown := sorted(preset.unseen - names):
        known = ", ".join(item.name for item in classes)
        raise ParamsError(f"dataset.unseen: the data set has no class {unknown[0]!r}; it has {known}")
    if preset.unseen == names:
        raise ParamsError("dataset.unseen names all classes of the data set; leave at least one to be seen")
    kept = [item for item in classes if item.name not in preset.left_out]
    return seen_first(replace(item, seen=item.name not in preset.unseen) for item in kept)


def seen_first(labels: Iterable[ClassName]) -> list[ClassName]:
    """Put seen labels before unseen ones; the order of either stays."""
    return sorted(labels, key=lambda item: not item.seen)


def labels_of(part: RawSplit, classes: Sequence[ClassName], labels: Sequence[ClassName]) -> Labels:
    """Ground truth int8 [N, L] of an open vocabulary: 1 present, 0 absent, -1 unknown or left out.

    Args:
        part: a split; where it has no labels of the open vocabulary, they are columns of its own.
        classes: C classes, the columns of `part.labels`.
        labels: L labels; classes by name, where the split has no labels of their own.
    """
    if part.open_labels is not None:
        return part.open_labels
    column = {item.name: index for index, item in enumerate(classes)}
    return part.labels[:, [column[item.name] for item in labels]]


def read_combinations(folder: Path, classes: Sequence[ClassName]) -> dict[tuple[str, str], ClassName]:
    """Read which values an attribute has, and which of its combinations with a class are unseen.

    Args:
        folder: holds attributes.txt, a value a line, and unseen.txt, a combination a line ("red car").
        classes: the data set's own, in column order.

    Returns:
        Label by value and name of the class, the seen ones first, each in the order of the classes and, within a
        class, of attributes.txt. A prompt says the value before the prompt name of the class.

    Raises:
        DataError: a file is missing; there is no value, or one with a control character; two combinations have one
            name; or unseen.txt names what is none, or names all.
    """
    path = folder / ATTRIBUTE_FILE
    values = read_lines(path, "write one value a line there, for example 'red'")
    if not values:
        raise DataError(f"{path} is empty: write one value a line there, for example 'red'")
    pair_of: dict[str, tuple[str, str]] = {}
    prompts: dict[str, str] = {}
    for item in classes:
        for row, value in enumerate(values, start=1):
            name = f"{value} {item.name}"
            if name in pair_of:
                raise DataError(
                    f"{path}: row {row} is {value!r}, which gives a second label {name!r}; rename the value"
                )
            pair_of[name] = value, item.name
            prompts[name] = f"{value} {item.prompt}"
    unseen = _read_unseen(folder / UNSEEN_FILE, list(pair_of))
    labels = prompt_names.with_prompts(list(pair_of), prompts, {})
    return {pair_of[c.name]: c for c in seen_first(replace(c, seen=c.name not in unseen) for c in labels)}


def _read_unseen(path: Path, names: Sequence[str]) -> set[str]:
    """Read which of the labels are unseen, a name a line."""
    cure = f"write one label a line there, for example {names[0]!r}; it may be empty"
    unseen, known = read_lines(path, cure), set(names)
    for row, name in enumerate(unseen, start=1):
        if name not in known:
            raise DataError(f"{path}: row {row} is {name!r}, which is no label: {cure}")
    if known == set(unseen):
        raise DataError(f"{path} names all labels; leave at least one to be seen")
    return set(unseen)


def twins(labels: Iterable[ClassName]) -> set[str]:
    """Names of the unseen labels of which the singular or the plural is seen: training has their word, nearly.

    English nouns whose plural ends in s, es, ies (y) or ves (f, fe), and person, people.
    """
    names: dict[bool, set[str]] = {True: set(), False: set()}
    for item in labels:
        names[item.seen].add(item.name)
    plurals = {plural for name in names[True] for plural in _plurals(name)}
    return {name for name in names[False] if name in plurals or not names[True].isdisjoint(_plurals(name))}


def _plurals(noun: str) -> set[str]:
    """What a noun's plural may be; more than one where the spelling does not tell."""
    found = {f"{noun}s"}
    if noun.endswith(_SIBILANTS):
        found.add(f"{noun}es")
    for end, plural in (("y", "ies"), ("f", "ves"), ("fe", "ves")):
        if noun.endswith(end):
            found.add(noun.removesuffix(end) + plural)
    if noun in _IRREGULAR:
        found.add(_IRREGULAR[noun])
    return found
