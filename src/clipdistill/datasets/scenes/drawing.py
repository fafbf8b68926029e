"""Vector drawings and their pixels: parts in, an RGBA sprite out.

A drawing is a list of parts in its own frame: x to the right, y downward, about [-1, 1] on both axes. Points
are turned before they become pixels, so that a rotated object is as sharp as an upright one.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Sequence

Points = npt.NDArray[np.float64]
RGB = tuple[int, int, int]

_SUPERSAMPLING = 4


@dataclass(frozen=True, slots=True)
class Part:
    """A filled shape, or a line.

    Attributes:
        points: corners of the shape, or the line's course [n, 2].
        colour: RGB, 0 to 255.
        width: width of the line in the drawing's units; 0: a filled shape.
        outlined: the drawing's outline runs around this part too; a detail that lies inside another has none.
    """

    points: Points
    colour: RGB
    width: float = 0.0
    outlined: bool = True


@dataclass(frozen=True, slots=True)
class Pose:
    """How a drawing is set into the picture.

    Attributes:
        angle: clockwise turn, degrees.
        mirrored: left and right exchanged, before the turn.
        stretch: width over height against the drawing's own.
    """

    angle: float = 0.0
    mirrored: bool = False
    stretch: float = 1.0

    def apply(self, points: Points) -> Points:
        """Move points [n, 2] into the pose."""
        turn = math.radians(self.angle)
        across = math.sqrt(self.stretch) * (-1 if self.mirrored else 1)
        down = 1 / math.sqrt(self.stretch)
        matrix = np.array(
            [
                [across * math.cos(turn), across * math.sin(turn)],
                [-down * math.sin(turn), down * math.cos(turn)],
            ]
        )
        posed: Points = points @ matrix
        return posed


def points(*corners: tuple[float, float]) -> Points:
    """Corners as an array [n, 2]."""
    return np.array(corners, dtype=np.float64)


def ellipse(x: float, y: float, across: float, down: float, *, start: float = 0, stop: float = 360) -> Points:
    """Points on an ellipse with half axes `across` and `down`, clockwise from angle to angle (degrees)."""
    angles = np.radians(np.linspace(start, stop, max(6, round(abs(stop - start) / 11)) + 1))
    return np.stack([x + across * np.cos(angles), y + down * np.sin(angles)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """The four corners of a rectangle."""
    return points((left, top), (right, top), (right, bottom), (left, bottom))


def smooth(corners: Points, closed: bool = True, steps: int = 7) -> Points:
    """Curve through points [n, 2]: a uniform Catmull-Rom spline with `steps` points a span."""
    ends = (corners[-1:], corners[:2]) if closed else (corners[:1], corners[-1:])
    knots = np.concatenate([ends[0], corners, ends[1]])
    spans = len(knots) - 3
    before, start, stop, after = (knots[i : i + spans, None] for i in range(4))
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    cubic = (
        2 * start
        + (stop - before) * t
        + (2 * before - 5 * start + 4 * stop - after) * t**2
        + (3 * start - before - 3 * stop + after) * t**3
    )
    curve: Points = (cubic / 2).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, corners[-1:]])


def turned(shape: Points, degrees: float, x: float = 0, y: float = 0) -> Points:
    """Points turned clockwise about (x, y)."""
    centre = np.array([x, y])
    moved: Points = Pose(angle=degrees).apply(shape - centre) + centre
    return moved


def flipped(shape: Points) -> Points:
    """Points with left and right exchanged."""
    mirrored: Points = shape * np.array([-1.0, 1.0])
    return mirrored


def mix(colour: RGB, other: RGB, share: float) -> RGB:
    """Colour on the way from `colour` (share 0) to `other` (share 1)."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def shift(colour: RGB, hue: float, saturation: float, value: float) -> RGB:
    """Colour with its hue moved (turns) and its saturation and value multiplied, each kept in range."""
    h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    shifted = colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), min(1, v * value))
    red, green, blue = (round(channel * 255) for channel in shifted)
    return red, green, blue


def render(
    parts: Sequence[Part], side: float, pose: Pose, outline: RGB | None = None, border: float = 0.05
) -> Image.Image:
    """Draw parts, the first one lowest.

    Args:
        parts: at least one.
        side: length of the longer side of the drawing's bounding box, pixels.
        pose: how the drawing is turned.
        outline: colour of a line around the drawing's silhouette; None: no line.
        border: width of that line in the drawing's units.

    Returns:
        RGBA sprite as large as the bounding box; alpha is the share of a pixel that is covered.
    """
    border = border if outline is not None else 0.0
    posed = [replace(part, points=pose.apply(part.points)) for part in parts]
    reach = [part.width / 2 + (border if part.outlined else 0.0) for part in posed]
    low = np.min([part.points.min(axis=0) - extra for part, extra in zip(posed, reach, strict=True)], axis=0)
    high = np.max([part.points.max(axis=0) + extra for part, extra in zip(posed, reach, strict=True)], axis=0)
    scale = _SUPERSAMPLING * side / float((high - low).max())
    # The longer side is `side` up to rounding: without the tolerance a whole number could become the next one.
    width, height = (max(1, math.ceil(extent * scale / _SUPERSAMPLING - 1e-6)) for extent in (high - low).tolist())
    canvas = Image.new("RGBA", (width * _SUPERSAMPLING, height * _SUPERSAMPLING), (*(outline or (0, 0, 0)), 0))
    brush = ImageDraw.Draw(canvas)
    placed = [replace(part, points=(part.points - low) * scale, width=part.width * scale) for part in posed]
    if outline is not None:
        for part in placed:
            if part.outlined:
                _draw_outline(brush, part, outline, 2 * border * scale)
    for part in placed:
        _draw(brush, part)
    return canvas.reduce(_SUPERSAMPLING)


def _draw(brush: ImageDraw.ImageDraw, part: Part) -> None:
    if part.width:
        _stroke(brush, part.points, part.width, part.colour)
    else:
        brush.polygon(part.points.ravel().tolist(), fill=part.colour)


def _draw_outline(brush: ImageDraw.ImageDraw, part: Part, colour: RGB, width: float) -> None:
    if part.width:
        _stroke(brush, part.points, part.width + width, colour)
    else:
        _stroke(brush, np.concatenate([part.points, part.points[:1]]), width, colour)


def _stroke(brush: ImageDraw.ImageDraw, course: Points, width: float, colour: RGB) -> None:
    """A line with round ends and corners; Pillow leaves notches where a thick line bends."""
    thickness = max(1, round(width))
    radius = (thickness - 1) / 2
    brush.line(course.ravel().tolist(), fill=colour, width=thickness)
    for x, y in course[_corners(course, radius)].tolist():
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _corners(course: Points, radius: float) -> npt.NDArray[np.bool_]:
    """The ends of a line, and where its bend would leave a notch that shows: bool [n]."""
    steps = np.diff(course, axis=0)
    headings = np.arctan2(steps[:, 1], steps[:, 0])
    bends = np.abs((np.diff(headings) + math.pi) % (2 * math.pi) - math.pi)
    return np.concatenate([[True], bends * radius > 0.4, [True]])
