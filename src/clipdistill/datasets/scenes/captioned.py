"""Captioned images from which a tiny CLIP is trained.

An image shows one large object, and in about half of the images one or two smaller ones; in a third, the
frame cuts the large one, as the border of a snippet does. The caption names the largest object alone: a CLIP
that learns from such pairs looks for one object in an image, as the published ones do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clipdistill.datasets.scenes.canvas import Canvas
from clipdistill.datasets.scenes.objects import CLASSES, random_colour

if TYPE_CHECKING:
    from PIL import Image

Images = npt.NDArray[np.uint8]

TEMPLATES = (
    "a photo of {a} {thing}.",
    "a photo of {a} {thing}",
    "a photo of the {thing}.",
    "a picture of {a} {thing}.",
    "a picture of {a} {thing}",
    "a drawing of {a} {thing}.",
    "an image of {a} {thing}",
    "there is {a} {thing}",
    "there is {a} {thing} here.",
    "this is {a} {thing}.",
    "{a} {thing}",
    "the {thing}",
    "{thing}",
)

_STREAM = 2
_SIZES = (0.45, 0.95)
_SMALLER = (0.3, 0.6)
_CUT = 1 / 3
_COMPANY = 0.58
_OVERLAP = 0.3


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image and its caption.

    Attributes:
        image: RGB.
        caption: names the first of `objects`, with its colour or without.
        objects: colour and class of all objects, by the area of the box around what is visible of each, the
            largest first.
    """

    image: Image.Image
    caption: str
    objects: list[str]


def draw_captioned(rng: np.random.Generator, side: int) -> CaptionedImage:
    """Draw one captioned image.

    Args:
        rng: source of every choice.
        side: side of the square image, pixels.

    Returns:
        The image and its caption.
    """
    canvas = Canvas(rng, side)
    canvas.add_clutter(int(rng.integers(3, 8)), 0.08, 0.4)
    share = rng.uniform(*_SIZES)
    further = int(rng.integers(1, 3)) if rng.random() < _COMPANY else 0
    first, *others = (CLASSES[i] for i in rng.permutation(len(CLASSES))[: 1 + further])
    # Uncut it always fits; of places where the frame cuts it, the tries find none once in thousands.
    while not _try_to_add(canvas, first, share, cut=rng.random() < _CUT):
        pass
    for name in others:
        _try_to_add(canvas, name, share * rng.uniform(*_SMALLER), cut=rng.random() < _CUT)
    canvas.add_clutter(int(rng.integers(0, 3)), 0.04, 0.1)
    found = sorted(canvas.objects(), key=lambda item: -item.box.area)
    return CaptionedImage(
        canvas.picture,
        compose_caption(rng, found[0].name, found[0].colour),
        [f"{item.colour} {item.name}" for item in found],
    )


def _try_to_add(canvas: Canvas, name: str, share: float, cut: bool) -> bool:
    colour = random_colour(canvas.rng)
    sprite = canvas.draw(name, colour, share)
    place = canvas.find_place(sprite, _OVERLAP, cut)
    if place is None:
        return False
    canvas.add_object(name, colour, sprite, place)
    return True


def compose_caption(rng: np.random.Generator, name: str, colour: str) -> str:
    """A caption of one object, from a random template; one in two names the colour."""
    thing = f"{colour} {name}" if rng.random() < 0.5 else name
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
    return template.format(a="an" if thing[0] in "aeiou" else "a", thing=thing)


def draw_rows(seed: int, side: int, rows: range) -> tuple[Images, list[str], list[list[str]]]:
    """Draw captioned images `rows`; returns images [n, side, side, 3], captions and objects."""
    drawn = [draw_captioned(np.random.default_rng([seed, _STREAM, row]), side) for row in rows]
    images = np.stack([np.asarray(item.image) for item in drawn])
    return images, [item.caption for item in drawn], [item.objects for item in drawn]
