"""A picture in the making: ground, clutter, objects, and which of them each pixel shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from clipdistill.datasets.scenes.ground import draw_clutter, draw_ground
from clipdistill.datasets.scenes.objects import draw_object, random_pose

Mask = npt.NDArray[np.uint8]

_SHADOW = 70
_HALF_COVERED = 128
_TRIES = 24
_CUT_VISIBLE = (0.5, 0.95)


@dataclass(frozen=True, slots=True)
class Box:
    """A box in pixels: columns left to right - 1 and rows top to bottom - 1 lie in it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        """Pixels in the box, 0 where it is empty."""
        return max(0, self.right - self.left) * max(0, self.bottom - self.top)

    def meet(self, other: Box) -> Box:
        """What both boxes share; its area is 0 where they are apart."""
        return Box(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        )


@dataclass(frozen=True, slots=True)
class SceneObject:
    """An object as the finished picture shows it.

    Attributes:
        name: its class.
        colour: its main colour.
        box: extent of its visible pixels.
    """

    name: str
    colour: str
    box: Box


class Canvas:
    """A square picture that is drawn from the back to the front.

    Args:
        rng: source of every choice.
        side: side of the picture, pixels.
    """

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        self.rng = rng
        self.side = side
        self.picture = draw_ground(rng, side)
        self.frame = Box(0, 0, side, side)
        self._objects: list[tuple[str, str]] = []
        self._places: list[Box] = []
        # 1 + number of the object that a pixel shows; 0: none.
        self._owner: Mask = np.zeros((side, side), dtype=np.uint8)

    def add_clutter(self, count: int, smallest: float, largest: float) -> None:
        """Scatter distractors over what is there; sizes are shares of the side."""
        for _ in range(count):
            sprite = draw_clutter(self.rng, self.side * self.rng.uniform(smallest, largest))
            left, top = (int(self.rng.integers(-extent // 2, self.side - extent // 2)) for extent in sprite.size)
            self._paste(sprite, left, top, 0)

    def draw(self, name: str, colour: str, share: float) -> Image.Image:
        """Make the sprite of an object in a random pose, its longer side `share` of the picture's."""
        return draw_object(name, colour, self.side * share, self.rng, random_pose(self.rng))

    def find_place(self, sprite: Image.Image, overlap: float, cut: bool = False) -> Box | None:
        """Look for a place for an object, uniform among those that are allowed.

        Args:
            sprite: the object.
            overlap: what its box may share with the box of any other object, over the smaller one's area.
            cut: False: it lies inside the frame; True: the frame cuts it, and 0.5 to 0.95 of its box stay
                visible.

        Returns:
            Its box, or None where a few tries found no place.
        """
        (width, height), side = sprite.size, self.side
        low, high = ((-width, -height), (side, side)) if cut else ((0, 0), (side - width, side - height))
        if min(high) < 0:
            return None
        for left, top in self.rng.integers(low, high, size=(_TRIES, 2), endpoint=True).tolist():
            place = Box(left, top, left + width, top + height)
            visible = place.meet(self.frame).area / place.area
            if cut and not _CUT_VISIBLE[0] <= visible <= _CUT_VISIBLE[1]:
                continue
            if all(place.meet(other).area <= overlap * min(place.area, other.area) for other in self._places):
                return place
        return None

    def add_object(self, name: str, colour: str, sprite: Image.Image, place: Box) -> None:
        """Put an object over what is there, with a soft shadow below it."""
        self._cast_shadow(sprite, place.left, place.top)
        self._objects.append((name, colour))
        self._places.append(place)
        self._paste(sprite, place.left, place.top, len(self._objects))

    def _cast_shadow(self, sprite: Image.Image, left: int, top: int) -> None:
        blur = max(1.0, max(sprite.size) / 32)
        margin = round(3 * blur)
        shadow = Image.new("L", (sprite.width + 2 * margin, sprite.height + 2 * margin))
        shadow.paste(_SHADOW, (margin, margin), sprite)
        shadow = shadow.filter(ImageFilter.GaussianBlur(blur))
        self.picture.paste((20, 20, 30), (left - margin + round(blur), top - margin + round(2 * blur)), shadow)

    def _paste(self, sprite: Image.Image, left: int, top: int, owner: int) -> None:
        self.picture.paste(sprite, (left, top), sprite)
        inside = Box(left, top, left + sprite.width, top + sprite.height).meet(self.frame)
        if inside.area:
            covered = np.asarray(sprite.getchannel("A"))[
                inside.top - top : inside.bottom - top, inside.left - left : inside.right - left
            ]
            self._owner[inside.top : inside.bottom, inside.left : inside.right][covered >= _HALF_COVERED] = owner

    def objects(self) -> list[SceneObject]:
        """The objects of which at least one pixel is visible, from the back to the front."""
        found = []
        for number, (name, colour) in enumerate(self._objects, start=1):
            rows, columns = np.nonzero(self._owner == number)
            if len(rows):
                box = Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
                found.append(SceneObject(name, colour, box))
        return found

    def mask(self, classes: tuple[str, ...]) -> Mask:
        """What each pixel shows, uint8 [side, side]: 0 no object, c + 1 an object of class c."""
        index = [0] + [classes.index(name) + 1 for name, _ in self._objects]
        return np.array(index, dtype=np.uint8)[self._owner]
