"""The twelve classes of the generated data set, each drawn from several parts.

The order of `CLASSES` is the order of the columns. An object has one main colour; its other parts have tones
derived from it, or tones of their own (the trunk of a tree is brown in a pink tree too).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from clipdistill.datasets.scenes import drawing, nature, things
from clipdistill.datasets.scenes.drawing import RGB, Pose
from clipdistill.datasets.scenes.pen import INK, Pen

if TYPE_CHECKING:
    from collections.abc import Callable

COLOURS: dict[str, RGB] = {
    "red": (218, 40, 44),
    "orange": (244, 130, 24),
    "yellow": (248, 208, 44),
    "green": (52, 162, 72),
    "blue": (44, 104, 214),
    "purple": (128, 66, 184),
    "pink": (246, 136, 184),
    "brown": (136, 86, 48),
}
MAX_ANGLE = 25.0

_DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "fish": nature.fish,
    "car": things.car,
    "umbrella": things.umbrella,
    "house": things.house,
    "tree": nature.tree,
    "cup": things.cup,
    "flower": nature.flower,
    "boat": things.boat,
    "key": things.key,
    "clock": things.clock,
    "mushroom": nature.mushroom,
    "butterfly": nature.butterfly,
}
CLASSES: tuple[str, ...] = tuple(_DRAWINGS)


def draw_object(name: str, colour: str, side: float, rng: np.random.Generator, pose: Pose) -> Image.Image:
    """Draw one object of a class; no two draws have quite the same proportions and shade.

    Args:
        name: one of `CLASSES`.
        colour: one of `COLOURS`.
        side: longer side of its bounding box, pixels.
        rng: source of the variation.
        pose: how it is turned.

    Returns:
        RGBA sprite as large as the bounding box; alpha is the object's mask.
    """
    shade = drawing.shift(COLOURS[colour], rng.uniform(-0.012, 0.012), rng.uniform(0.9, 1.08), rng.uniform(0.92, 1.06))
    pen = Pen(rng, shade)
    _DRAWINGS[name](pen)
    sprite = drawing.render(pen.parts, side, pose, outline=drawing.mix(shade, INK, 0.75))
    return _lit(sprite)


def random_colour(rng: np.random.Generator) -> str:
    """One of `COLOURS`, each as likely as another."""
    return list(COLOURS)[int(rng.integers(len(COLOURS)))]


def random_pose(rng: np.random.Generator) -> Pose:
    """A turn of up to 25 degrees either way, mirrored or not, a little stretched."""
    return Pose(rng.uniform(-MAX_ANGLE, MAX_ANGLE), bool(rng.integers(2)), rng.uniform(0.9, 1.1))


def _lit(sprite: Image.Image) -> Image.Image:
    """Light from above: brighter at the top, darker at the bottom."""
    pixels = np.asarray(sprite).astype(np.float32)
    pixels[..., :3] *= np.linspace(1.08, 0.9, len(pixels), dtype=np.float32)[:, None, None]
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8), "RGBA")
