"""Drawings of animals and plants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clipdistill.datasets.scenes.drawing import RGB, box, ellipse, flipped, mix, points, smooth, turned
from clipdistill.datasets.scenes.pen import CREAM, INK, SUN, WHITE, WOOD

if TYPE_CHECKING:
    from clipdistill.datasets.scenes.pen import Pen

_LEAF: RGB = (70, 150, 70)


def fish(pen: Pen) -> None:
    """Seen from the side: fins, bands, a light belly."""
    tall = pen.near(0.5, 0.1)
    tail = pen.near(0.48, 0.12)
    pen.fill(smooth(points((-0.42, 0), (-0.98, -tail), (-0.8, 0), (-0.98, tail))), pen.dark)
    pen.fill(
        smooth(points((-0.3, -tall * 0.6), (-0.1, -tall - pen.near(0.26)), (0.42, -tall * 0.8), (0, -0.1))),
        pen.dark,
    )
    pen.fill(smooth(points((0.0, tall * 0.6), (-0.16, tall + 0.2), (0.32, tall * 0.8))), pen.dark)
    back = points((-0.6, 0), (-0.24, -tall * 0.78), (0.3, -tall), (0.78, -tall * 0.55), (0.98, 0.0))
    belly = points((0.8, tall * 0.55), (0.3, tall), (-0.24, tall * 0.78))
    pen.fill(smooth(np.concatenate([back, belly])), pen.main)
    pen.mark(
        smooth(points((-0.3, tall * 0.36), (0.3, tall * 0.56), (0.84, tall * 0.34), (0.3, tall * 0.92))),
        pen.light,
    )
    for x, reach in ((-0.3, 0.4), (-0.06, 0.62), (0.18, 0.74)):
        band = points((x, -tall * reach), (x + 0.1, -tall * reach * 0.3), (x + 0.03, tall * reach * 0.3))
        pen.scratch(smooth(band, closed=False), 0.09, pen.dark)
    pen.scratch(smooth(points((0.76, 0.2), (0.83, 0.18), (0.89, 0.12)), closed=False), 0.035, INK)
    _eye(pen, 0.62, -tall * 0.24, pen.near(0.15))


def _eye(pen: Pen, x: float, y: float, radius: float) -> None:
    pen.mark(ellipse(x, y, radius, radius), WHITE)
    pen.mark(ellipse(x + radius * 0.25, y, radius * 0.55, radius * 0.55), INK)


def tree(pen: Pen) -> None:
    """A fir of three tiers."""
    trunk = pen.near(0.11, 0.15)
    pen.fill(box(-trunk, 0.4, trunk, 0.96), WOOD)
    tops, bottoms, halves = (-0.98, -0.6, -0.2), (-0.28, 0.16, 0.62), (0.4, 0.56, 0.72)
    for top, bottom, half in reversed(list(zip(tops, bottoms, halves, strict=True))):
        reach = pen.near(half)
        hem = np.linspace(reach, -reach, 13)
        teeth = bottom - 0.09 * np.abs(np.sin(np.linspace(0, 3 * np.pi, 13)))
        pen.fill(np.concatenate([points((0, top)), np.stack([hem, teeth], axis=1)]), pen.main)
        pen.mark(
            points((-0.02, top + 0.12), (-reach * 0.76, bottom - 0.1), (-reach * 0.3, bottom - 0.1)),
            pen.light,
        )
        pen.mark(points((0.02, top + 0.12), (reach * 0.84, bottom - 0.06), (reach * 0.36, bottom - 0.1)), pen.dark)


def flower(pen: Pen) -> None:
    """Six or seven petals on a stem with two leaves."""
    bend = pen.near(0.08, 0.9)
    pen.line(smooth(points((0, -0.3), (bend, 0.3), (0, 0.96)), closed=False), 0.09, _LEAF)
    for side in (-1, 1):
        height = pen.near(0.62, 0.15)
        leaf = smooth(points((0, height + 0.1), (0.2, height - 0.16), (0.52, height - 0.22), (0.36, height + 0.06)))
        pen.fill(leaf if side > 0 else flipped(leaf), _LEAF)
    count = int(pen.rng.integers(6, 8))
    start = pen.rng.uniform(0, 360 / count)
    long, broad = pen.near(0.27), pen.near(0.2)
    for number in range(count):
        petal = ellipse(0, -0.36 - 0.34, broad, long)
        pen.fill(
            turned(petal, start + number * 360 / count, 0, -0.36),
            pen.main if number % 2 else mix(pen.main, WHITE, 0.14),
        )
    centre = mix(SUN, (120, 66, 20), 0.75 if pen.main[0] > 200 and pen.main[1] > 110 else 0.0)
    radius = pen.near(0.2)
    pen.fill(ellipse(0, -0.36, radius, radius), centre)


def mushroom(pen: Pen) -> None:
    """A dotted cap on a light stem."""
    half = pen.near(0.24)
    left = smooth(points((-half * 0.8, 0.0), (-half, 0.5), (-half * 1.3, 0.86), (-half * 0.7, 0.95)), closed=False)
    pen.fill(np.concatenate([left, flipped(left)[::-1]]), CREAM)
    pen.fill(
        smooth(
            points(
                (-half * 1.1, 0.16),
                (0, 0.1),
                (half * 1.1, 0.16),
                (half * 1.5, 0.36),
                (0, 0.3),
                (-half * 1.5, 0.36),
            )
        ),
        WHITE,
    )
    high = pen.near(0.98, 0.06)
    dome = ellipse(0, 0.08, 0.94, high, start=180, stop=360)
    hem = smooth(points((0.94, 0.08), (0.78, 0.24), (0, 0.18), (-0.78, 0.24), (-0.94, 0.08)), closed=False)
    pen.fill(np.concatenate([dome, hem]), pen.main)
    for x, y, radius in (
        (-0.08, -0.52, 0.2),
        (-0.56, -0.14, 0.15),
        (0.46, -0.28, 0.18),
        (0.0, -0.02, 0.11),
        (0.72, 0.02, 0.1),
    ):
        size = pen.near(radius, 0.15)
        pen.mark(ellipse(pen.near(x), y, size, size * 0.86), CREAM)


def butterfly(pen: Pen) -> None:
    """Four dotted wings, seen from above."""
    top, wide = -pen.near(0.78), pen.near(0.94)
    upper = smooth(
        points(
            (0.04, -0.1),
            (0.34, top * 0.84),
            (wide * 0.8, top),
            (wide, top * 0.6),
            (wide * 0.78, -0.02),
            (0.3, 0.1),
        )
    )
    bottom = pen.near(0.78)
    lower = smooth(points((0.04, 0), (0.5, 0.06), (wide * 0.74, 0.34), (0.54, bottom), (0.26, bottom * 0.72)))
    for half in (lambda shape: shape, flipped):
        pen.fill(half(lower), pen.dark)
        pen.fill(half(upper), pen.main)
        pen.mark(half(ellipse(wide * 0.66, top * 0.62, 0.17, 0.15)), pen.light)
        pen.mark(half(ellipse(wide * 0.46, 0.4, 0.12, 0.14)), pen.light)
        feeler = smooth(points((0.02, -0.4), (0.12, -0.72), (0.28, -0.9)), closed=False)
        pen.line(half(feeler), 0.05, INK)
    pen.fill(ellipse(0, 0.02, 0.09, 0.52), INK)
    pen.fill(ellipse(0, -0.46, 0.12, 0.12), INK)
