"""One scene: several objects of various classes on a cluttered ground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipdistill.datasets.scenes.canvas import Canvas
from clipdistill.datasets.scenes.objects import CLASSES, random_colour

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from clipdistill.datasets.scenes.canvas import Mask, SceneObject

_SIZES = (0.22, 0.5)
_REPEAT = 0.1
_OVERLAP = 0.12
_SHRINK = 0.85
_SMALLEST = 0.15


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn scene and what is known about it.

    Attributes:
        image: RGB.
        objects: from the back to the front.
        mask: uint8 [side, side], 0 no object, c + 1 an object of class c.
    """

    image: Image.Image
    objects: list[SceneObject]
    mask: Mask


def draw_scene(rng: np.random.Generator, side: int, max_objects: int) -> Scene:
    """Draw a scene of one to `max_objects` objects, every number as likely as another.

    Classes are uniform and distinct; in one of ten scenes of several objects, a class stands twice. An object
    has 0.22 to 0.5 of the side (down to 0.15 where there is no room), lies inside the picture, and is uniform among
    the places where it overlaps little with others.

    Args:
        rng: source of every choice.
        side: side of the picture, pixels.
        max_objects: 1 to 9.

    Returns:
        The scene.
    """
    canvas = Canvas(rng, side)
    canvas.add_clutter(int(rng.integers(6, 13)), 0.05, 0.3)
    for name in _choose_classes(rng, max_objects):
        _place(canvas, name)
    canvas.add_clutter(int(rng.integers(0, 4)), 0.03, 0.08)
    return Scene(canvas.picture, canvas.objects(), canvas.mask(CLASSES))


def _choose_classes(rng: np.random.Generator, max_objects: int) -> list[str]:
    count = int(rng.integers(1, max_objects + 1))
    chosen = [CLASSES[i] for i in rng.permutation(len(CLASSES))[:count]]
    if count > 1 and rng.random() < _REPEAT:
        chosen[-1] = chosen[0]
    return chosen


def _place(canvas: Canvas, name: str) -> None:
    """Put an object where it overlaps little; smaller where there is no such place, and at last not at all."""
    colour = random_colour(canvas.rng)
    share = canvas.rng.uniform(*_SIZES)
    while share >= _SMALLEST:
        sprite = canvas.draw(name, colour, share)
        place = canvas.find_place(sprite, _OVERLAP)
        if place is not None:
            canvas.add_object(name, colour, sprite, place)
            return
        share *= _SHRINK
