"""Charts as inline SVG that fills the width it is given: shapes stretch, while text and strokes keep their size.

Everything is drawn by presentation attributes and classes, since the page's policy allows no style attributes. Colours
come from the style sheet: a class `of-<key>` sets `color`, and shapes are drawn in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

# Points are marked one by one up to here; more of them would hide the line.
_MARKED = 40


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        key: names its colour.
        name: for people.
        points: (x, y), finite, with x ascending; at least one.
    """

    key: str
    name: str
    points: tuple[tuple[float, float], ...]


def bar(value: float, key: str, high: float = 100.0) -> Markup:
    """Draw a horizontal bar on its track.

    Args:
        value: its length, cut to [0, `high`].
        key: names its colour.
        high: value of the full width.
    """
    share = 100 * min(max(value / high, 0.0), 1.0)
    return Markup(
        '<svg class="bar of-{}" aria-hidden="true"><rect class="track" width="100%" height="100%" rx="3"/>'
        '<rect class="fill" width="{:.2f}%" height="100%" rx="3"/></svg>'
    ).format(key, share)


def line_chart(
    title: str, series: Sequence[Series], digits: int = 1, span: tuple[float, float] | None = None
) -> Markup:
    """Draw lines over x whose whole numbers are named below, such as epochs.

    Args:
        title: what is drawn, for those who do not see it.
        series: at least one.
        digits: decimals of the values that are shown at a point.
        span: first and last x of the axis; those of the points where it is None.
    """
    across = [x for line in series for x, _ in line.points]
    up = [y for line in series for _, y in line.points]
    levels = ticks(min(up), max(up))
    first, last = span or (min(across), max(across))
    frame = _Frame(first, max(last, first + 1), levels[0], levels[-1])
    parts = [frame.level(level) for level in levels]
    parts += [frame.step(x) for x in _whole_ticks(first, last)]
    parts += [frame.line(line) for line in series if len(line.points) > 1]
    parts += [frame.dot(line, point, digits) for line in series if len(line.points) <= _MARKED for point in line.points]
    opening = Markup('<svg class="chart" role="img" aria-label="{}">').format(title)
    return opening + Markup("").join(parts) + Markup("</svg>")


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers in even steps that enclose a range: at least two.

    Args:
        low: finite.
        high: finite, not below `low`.
        wanted: steps, about.

    Example:
        >>> ticks(61.0, 97.3)
        [60.0, 70.0, 80.0, 90.0, 100.0]
    """
    size = max(abs(low), abs(high), 1.0)
    spread = high - low if high - low > 1e-6 * size else size
    step = _round_step(spread / wanted)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _whole_ticks(first: float, last: float) -> list[int]:
    """At most a handful of whole numbers in [first, last]."""
    step = max(1, round(_round_step(max(last - first, 1) / 6)))
    return list(range(math.ceil(first / step) * step, math.floor(last) + 1, step))


@dataclass(frozen=True, slots=True)
class _Frame:
    """Ranges of the two axes, and what is drawn in them; places are shares of the width and height, percent."""

    left: float
    right: float
    low: float
    high: float

    def _across(self, x: float) -> float:
        return 100 * (x - self.left) / (self.right - self.left)

    def _down(self, y: float) -> float:
        return 100 * (self.high - y) / (self.high - self.low)

    def level(self, y: float) -> Markup:
        """A grid line, with its number to the left of the frame."""
        return Markup(
            '<line class="grid" x1="0%" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>'
            '<text class="level" x="-8" y="{0:.2f}%" dy="0.32em">{1:g}</text>'
        ).format(self._down(y), y)

    def step(self, x: float) -> Markup:
        """The number of an epoch below the frame."""
        return Markup('<text class="step" x="{:.2f}%" y="100%" dy="1.5em">{:g}</text>').format(self._across(x), x)

    def line(self, series: Series) -> Markup:
        """A line through the points, stretched to the frame by a viewport of its own."""
        places = " ".join(f"{self._across(x):.2f},{self._down(y):.2f}" for x, y in series.points)
        return Markup(
            '<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%" class="stretched">'
            '<polyline class="line of-{}" points="{}"/></svg>'
        ).format(series.key, places)

    def dot(self, series: Series, point: tuple[float, float], digits: int) -> Markup:
        """A point that says its value when it is pointed at."""
        said = f"{series.name}: {point[1]:.{digits}f} at {point[0]:g}"
        return Markup('<circle class="dot of-{}" cx="{:.2f}%" cy="{:.2f}%" r="3.5"><title>{}</title></circle>').format(
            series.key, self._across(point[0]), self._down(point[1]), said
        )
