"""Drawings of things that people make."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from clipdistill.datasets.scenes.drawing import (
    RGB,
    Points,
    box,
    ellipse,
    flipped,
    points,
    smooth,
    turned,
)
from clipdistill.datasets.scenes.pen import CREAM, INK, SUN, WOOD

if TYPE_CHECKING:
    from clipdistill.datasets.scenes.pen import Pen

_GLASS: RGB = (196, 228, 244)
_STEEL: RGB = (176, 182, 192)
_SLATE: RGB = (96, 94, 110)
_COFFEE: RGB = (92, 56, 36)


def car(pen: Pen) -> None:
    """Seen from the side: cabin, windows, lights, two wheels."""
    roof = -pen.near(0.54)
    rear, front = -pen.near(0.4, 0.15), pen.near(0.22, 0.2)
    back = points((-0.68, 0), (rear - 0.08, roof + 0.12), (rear + 0.06, roof))
    screen = points((front - 0.06, roof), (front + 0.1, roof + 0.1), (0.56, 0))
    pen.fill(np.concatenate([back, screen]), pen.main)
    trunk = points((-0.9, 0.38), (-0.97, 0.2), (-0.92, -0.02), (-0.6, -0.09))
    hood = points((0.5, -0.09), (0.88, 0.02), (0.97, 0.2), (0.93, 0.38))
    pen.fill(smooth(np.concatenate([trunk, hood]), steps=5), pen.main)
    pillar, glass, sill = (rear + front) / 2, roof + 0.1, -0.08
    left, right = pillar - 0.04, pillar + 0.04
    pen.mark(points((-0.52, sill), (rear + 0.05, glass), (left, glass), (left, sill)), _GLASS)
    pen.mark(points((right, sill), (right, glass), (front - 0.02, glass), (0.42, sill)), _GLASS)
    pen.mark(box(-0.88, 0.24, 0.88, 0.36), pen.dark)
    pen.mark(ellipse(0.84, 0.1, 0.07, 0.08), SUN)
    pen.mark(box(pillar + 0.1, 0.05, pillar + 0.24, 0.1), pen.dark)
    radius = pen.near(0.27)
    for x in (-0.5, 0.52):
        pen.fill(ellipse(x, 0.38, radius, radius), INK)
        pen.mark(ellipse(x, 0.38, radius * 0.52, radius * 0.52), _STEEL)


def umbrella(pen: Pen) -> None:
    """Open, with three panels and a hooked handle."""
    half, high, base = 0.95, pen.near(0.78), 0.06
    pole = smooth(points((0.24, 0.74), (0.2, 0.9), (0.1, 0.94), (0.01, 0.88), (0, 0.74)), closed=False)
    pen.line(np.concatenate([pole, points((0, -high))]), 0.085, WOOD)
    pen.line(points((0, base - high - 0.1), (0, base - high)), 0.07, WOOD)
    angles = np.radians(np.linspace(0, 90, 12))
    swing = np.linspace(0, 1, 8)[:, None]
    edges = (-half, -half * 0.42, half * 0.42, half)
    depth = pen.near(0.15)

    def rib(edge: float) -> Points:
        return np.stack([edge * np.sin(angles), base - high * np.cos(angles)], axis=1)

    for number, (left, right) in enumerate(itertools.pairwise(edges)):
        hem = np.concatenate([left + (right - left) * swing, base - depth * np.sin(np.pi * swing)], axis=1)
        panel = np.concatenate([rib(left), hem, rib(right)[::-1]])
        pen.fill(panel, pen.main if number % 2 == 0 else pen.light)


def house(pen: Pen) -> None:
    """Gable, chimney, door and a window with four panes."""
    half, eaves, ridge = pen.near(0.64), -0.02, -pen.near(0.84)
    chimney = pen.near(0.38, 0.15)
    pen.fill(box(chimney - 0.1, ridge + 0.06, chimney + 0.12, eaves), WOOD)
    pen.fill(box(-half, eaves - 0.1, half, 0.86), pen.main)
    pen.fill(
        points((-half - 0.26, eaves + 0.06), (0, ridge), (half + 0.26, eaves + 0.06)),
        _SLATE,
    )
    door = -half * pen.near(0.42, 0.2)
    pen.mark(box(door - 0.21, 0.26, door + 0.21, 0.86), pen.dark)
    pen.mark(box(door - 0.17, 0.3, door + 0.17, 0.86), CREAM)
    pen.mark(ellipse(door + 0.09, 0.58, 0.035, 0.035), INK)
    pane, size = half * 0.46, pen.near(0.2)
    pen.mark(box(pane - size - 0.04, 0.4 - size, pane + size + 0.04, 0.48 + size), pen.dark)
    pen.mark(box(pane - size, 0.44 - size, pane + size, 0.44 + size), CREAM)
    for x in (-1, 1):
        for y in (-1, 1):
            centre = (pane + x * size * 0.45, 0.44 + y * size * 0.45)
            reach = size * 0.33
            pen.mark(box(centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach), _GLASS)


def cup(pen: Pen) -> None:
    """Coffee in a mug on a saucer."""
    top, foot = pen.near(0.56), pen.near(0.4)
    pen.fill(ellipse(-0.12, 0.68, 0.82, 0.16), pen.light)
    pen.line(ellipse(top - 0.16, 0.04, 0.36, 0.3, start=-100, stop=100), 0.14, pen.dark)
    left = smooth(points((-top, -0.5), (-top * 0.96, 0.1), (-foot, 0.52), (-foot * 0.6, 0.66)), closed=False)
    side = np.concatenate([left, flipped(left)[::-1]]) + np.array([-0.12, 0])
    pen.fill(side, pen.main)
    pen.fill(ellipse(-0.12, -0.5, top, 0.17), pen.light)
    pen.mark(ellipse(-0.12, -0.47, top * 0.84, 0.11), _COFFEE)
    pen.scratch(points((-top * 0.74 - 0.12, -0.18), (-foot * 0.86 - 0.12, 0.34)), 0.09, pen.light)


def boat(pen: Pen) -> None:
    """Two sails, a flag, and a hull with portholes."""
    mast = pen.near(0.05, 0.9)
    pen.line(points((mast, -0.9), (mast, 0.4)), 0.07, WOOD)
    pen.fill(points((mast, -0.96), (mast - 0.3, -0.88), (mast, -0.78)), pen.main)
    reach = pen.near(0.82)
    leech = smooth(points((mast + 0.08, -0.84), (mast + 0.52, -0.3), (reach, 0.2)), closed=False)
    pen.fill(np.concatenate([leech, points((mast + 0.08, 0.2))]), CREAM)
    pen.fill(points((mast - 0.08, -0.58), (-pen.near(0.66), 0.2), (mast - 0.08, 0.2)), pen.light)
    deck = points((-0.96, 0.34), (0.98, 0.34))
    keel = smooth(
        points((0.98, 0.34), (0.76, 0.7), (0.4, 0.84), (-0.5, 0.84), (-0.78, 0.68), (-0.96, 0.34)),
        closed=False,
    )
    pen.fill(np.concatenate([deck, keel]), pen.main)
    pen.mark(box(-0.9, 0.38, 0.91, 0.47), pen.light)
    for x in (-0.36, 0.0, 0.36):
        pen.mark(ellipse(x, 0.63, 0.065, 0.065), CREAM)


def key(pen: Pen) -> None:
    """A ring, a shaft and two teeth."""
    ring = pen.near(0.27)
    pen.line(points((-0.3, 0), (0.92, 0)), 0.17, pen.main)
    length = pen.near(0.32, 0.12)
    for x, long in ((0.84, length), (0.56, length * pen.near(0.8, 0.2))):
        pen.fill(box(x - 0.09, 0, x + 0.09, long), pen.main)
    pen.line(points((-0.22, -0.17), (-0.22, 0.17)), 0.11, pen.main)
    pen.line(ellipse(-0.62, 0, ring, ring), 0.2, pen.main)
    pen.scratch(ellipse(-0.62, 0, ring, ring, start=170, stop=280), 0.06, pen.light)
    pen.scratch(points((-0.1, -0.03), (0.84, -0.03)), 0.05, pen.light)


def clock(pen: Pen) -> None:
    """An alarm clock with two bells and two feet, at any time of day."""
    for side in (-1, 1):
        pen.line(points((side * 0.4, 0.6), (side * 0.6, 0.94)), 0.13, INK)
        bell = turned(ellipse(0, -0.86, 0.34, 0.26, start=180, stop=360), side * 38, 0, 0.1)
        pen.fill(bell, pen.dark)
    pen.line(points((0, -0.6), (0, -0.88)), 0.1, INK)
    radius = pen.near(0.74, 0.04)
    pen.fill(ellipse(0, 0.1, radius, radius), pen.main)
    pen.mark(ellipse(0, 0.1, radius * 0.76, radius * 0.76), CREAM)
    for hour in range(12):
        tick = points((0, 0.1 - radius * 0.7), (0, 0.1 - radius * (0.56 if hour % 3 == 0 else 0.64)))
        pen.scratch(turned(tick, hour * 30, 0, 0.1), 0.05, INK)
    minutes = pen.rng.uniform(0, 720)
    for length, width, angle in ((0.38, 0.1, minutes / 2), (0.54, 0.07, minutes * 6)):
        pen.scratch(turned(points((0, 0.1), (0, 0.1 - radius * length)), angle, 0, 0.1), width, INK)
    pen.mark(ellipse(0, 0.1, 0.07, 0.07), pen.main)
