"""The pen that draws one object: it knows the main colour and lets every measure vary a little."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clipdistill.datasets.scenes import drawing
from clipdistill.datasets.scenes.drawing import RGB, Part, Points

if TYPE_CHECKING:
    import numpy as np

INK: RGB = (44, 40, 48)
WHITE: RGB = (255, 255, 255)
CREAM: RGB = (252, 240, 214)
WOOD: RGB = (128, 84, 50)
SUN: RGB = (252, 214, 74)


@dataclass(slots=True)
class Pen:
    """Collects the parts of one object and varies them.

    Attributes:
        rng: source of every variation.
        main: the object's main colour.
        parts: what was drawn so far.
    """

    rng: np.random.Generator
    main: RGB
    parts: list[Part] = field(default_factory=list)

    @property
    def dark(self) -> RGB:
        """The main colour in the shade."""
        return drawing.mix(self.main, INK, 0.3)

    @property
    def light(self) -> RGB:
        """The main colour in the light."""
        return drawing.mix(self.main, WHITE, 0.45)

    def near(self, value: float, share: float = 0.08) -> float:
        """A number within `share` of `value`."""
        return value * (1 + self.rng.uniform(-share, share))

    def fill(self, shape: Points, colour: RGB) -> None:
        """A shape; the outline runs around it."""
        self.parts.append(Part(shape, colour))

    def line(self, course: Points, width: float, colour: RGB) -> None:
        """A thick line; the outline runs along it."""
        self.parts.append(Part(course, colour, width))

    def mark(self, shape: Points, colour: RGB) -> None:
        """A filled detail inside what is drawn already."""
        self.parts.append(Part(shape, colour, outlined=False))

    def scratch(self, course: Points, width: float, colour: RGB) -> None:
        """A line as a detail inside what is drawn already."""
        self.parts.append(Part(course, colour, width, outlined=False))
