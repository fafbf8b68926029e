"""What lies around the objects: a ground, and clutter that is like none of them."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipdistill.datasets.scenes import drawing
from clipdistill.datasets.scenes.drawing import RGB, Part, Points, Pose, ellipse, smooth

if TYPE_CHECKING:
    from collections.abc import Callable

_Field = npt.NDArray[np.float32]


def draw_ground(rng: np.random.Generator, side: int) -> Image.Image:
    """A ground of two muted tones: a gradient, a horizon, stripes or patches; over it blotches and grain.

    Args:
        rng: source of the choices.
        side: side of the square image, pixels.

    Returns:
        RGB image.
    """
    tones = np.array([_muted(rng), _muted(rng)], dtype=np.float32)
    kind = (_gradient, _horizon, _stripes, _patches)[int(rng.integers(4))]
    share = kind(rng, side)[..., None]
    blotches = _noise(rng, side, int(rng.integers(4, 9))) * rng.uniform(4, 14)
    grain = rng.standard_normal((side, side), dtype=np.float32) * rng.uniform(1, 5)
    pixels = tones[0] * (1 - share) + tones[1] * share + (blotches + grain)[..., None]
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8), "RGB")


def _muted(rng: np.random.Generator) -> RGB:
    tone = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.08, 0.42), rng.uniform(0.6, 0.98))
    red, green, blue = (round(channel * 255) for channel in tone)
    return red, green, blue


def _ramp(rng: np.random.Generator, side: int, angle: float) -> _Field:
    """Position along a direction, about 0 to 1 from edge to edge [side, side]."""
    steps = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    across, down = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    ramp: _Field = steps[None, :] * across + steps[:, None] * down + np.float32(0.5 + rng.uniform(-0.15, 0.15))
    return ramp


def _gradient(rng: np.random.Generator, side: int) -> _Field:
    return _ramp(rng, side, rng.uniform(0, 2 * np.pi)).clip(0, 1)


def _horizon(rng: np.random.Generator, side: int) -> _Field:
    height = _ramp(rng, side, np.pi / 2 + rng.uniform(-0.2, 0.2)) + _noise(rng, side, 4) * np.float32(0.04)
    return _sharpened(height - np.float32(0.55), side / 2)


def _stripes(rng: np.random.Generator, side: int) -> _Field:
    ramp = _ramp(rng, side, rng.uniform(0, 2 * np.pi))
    wave = np.sin(ramp * np.float32(2 * np.pi * rng.uniform(3, 9)))
    return _sharpened(wave, side / 16) * np.float32(rng.uniform(0.3, 1))


def _patches(rng: np.random.Generator, side: int) -> _Field:
    return _sharpened(_noise(rng, side, int(rng.integers(4, 8))), rng.uniform(2, side / 8))


def _sharpened(field: _Field, slope: float) -> _Field:
    """0 where a field is negative and 1 where it is positive, with an edge of 1 / slope between."""
    return (field * np.float32(slope) + np.float32(0.5)).clip(0, 1)


def _noise(rng: np.random.Generator, side: int, cells: int) -> _Field:
    """Smooth noise, about -1 to 1 [side, side], with `cells` bumps a side."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def draw_clutter(rng: np.random.Generator, side: float) -> Image.Image:
    """One distractor: a blob, a polygon, a wavy line, dots or bars, in any one colour and without an outline.

    Args:
        rng: source of the choices.
        side: longer side of its bounding box, pixels.

    Returns:
        RGBA sprite.
    """
    tone = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.15, 0.9), rng.uniform(0.35, 1))
    red, green, blue = (round(channel * 255) for channel in tone)
    kind = _CLUTTER[int(rng.integers(len(_CLUTTER)))]
    pose = Pose(rng.uniform(0, 360), stretch=rng.uniform(0.6, 1.7))
    return drawing.render(kind(rng, (red, green, blue)), side, pose)


def _around(rng: np.random.Generator, corners: int, rough: float) -> Points:
    """Corners around the centre at uneven angles and distances [corners, 2]."""
    angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    radii = rng.uniform(1 - rough, 1, corners)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _blob(rng: np.random.Generator, colour: RGB) -> list[Part]:
    return [Part(smooth(_around(rng, int(rng.integers(5, 9)), 0.5)), colour)]


def _polygon(rng: np.random.Generator, colour: RGB) -> list[Part]:
    return [Part(_around(rng, int(rng.integers(3, 7)), 0.5), colour)]


def _wave(rng: np.random.Generator, colour: RGB) -> list[Part]:
    knots = int(rng.integers(2, 6))
    course = np.stack([np.linspace(-1, 1, knots), rng.uniform(-0.4, 0.4, knots)], axis=1)
    return [Part(smooth(course, closed=False), colour, rng.uniform(0.05, 0.2))]


def _dots(rng: np.random.Generator, colour: RGB) -> list[Part]:
    places = rng.uniform(-1, 1, (int(rng.integers(3, 8)), 2))
    return [
        Part(ellipse(x, y, radius, radius), colour)
        for (x, y), radius in zip(places.tolist(), rng.uniform(0.08, 0.2, len(places)).tolist(), strict=True)
    ]


def _bars(rng: np.random.Generator, colour: RGB) -> list[Part]:
    count = int(rng.integers(2, 5))
    lengths = rng.uniform(0.3, 1, count).tolist()
    return [
        Part(drawing.points((x, -long), (x, long)), colour, 0.14)
        for x, long in zip(np.linspace(-0.7, 0.7, count).tolist(), lengths, strict=True)
    ]


_CLUTTER: tuple[Callable[[np.random.Generator, RGB], list[Part]], ...] = (
    _blob,
    _polygon,
    _wave,
    _dots,
    _bars,
)
