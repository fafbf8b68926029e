"""One picture that tells how CCD changed the label of one image.

The student points and CLIP looks: the class activation map (CAM) of a class that the student believes in gives a box,
CLIP classifies the crop, and its answers move the label. Equal input gives equal bytes: the font is Pillow's own.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from clipdistill.errors import DataError
from clipdistill.evaluation.heat import overlay

WIDTH = 1200
MAX_VIEWS, MAX_CLASSES, MAX_ANSWERS = 6, 8, 5

# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
BEFORE_COLOUR, AFTER_COLOUR = "#B4B4B4", "#3B4A5C"
_INK, _MUTED, _FAINT, _TICK, _AGREES = "#202020", "#686868", "#EFEFEF", "#00795A", "#FFF1C2"
_MARGIN, _GAP, _COLUMNS = 24, 24, 3
_PANEL = (WIDTH - 2 * _MARGIN - (_COLUMNS - 1) * _GAP) // _COLUMNS
_OVERVIEW, _CROP, _BADGE, _ROW, _BAR = (560, 430), 150, 22, 44, 15


@dataclass(frozen=True, slots=True)
class LookedAt:
    """One view that the student pointed at.

    Attributes:
        name: class whose CAM drew the box.
        probability: the student's probability of that class, in [0, 1].
        box: x0, y0, x1, y1 in pixels of the image; what lies outside the image is cut.
        cam: float32 [h, w], the class's activation map over the whole image, of any range.
        answer: what CLIP said of the crop: its best classes with scores, best first.
    """

    name: str
    probability: float
    box: tuple[float, float, float, float]
    cam: npt.NDArray[np.float32]
    answer: list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Story:
    """What happened to the label of one image.

    Attributes:
        title: for example the image id.
        views: in the order of their numbers; empty where CLIP was asked nothing.
        before: label by class, in [0, 1]; classes that are left out are not shown.
        after: the same, after CLIP's answers.
        truth: names of the classes that are really in the image; None where unknown.
    """

    title: str
    views: list[LookedAt]
    before: dict[str, float]
    after: dict[str, float]
    truth: list[str] | None


def draw(image: Image.Image, story: Story) -> Image.Image:
    """Draw the story of one image.

    Args:
        image: upright photo of any size.
        story: what to tell; views after the first `MAX_VIEWS` are counted, not drawn.

    Returns:
        RGB picture, `WIDTH` pixels wide, on white.

    Raises:
        DataError: a number is NaN or infinite, or a map is not a filled matrix; the text names the image and the view.
    """
    _check(story)
    photo, views = image.convert("RGB"), story.views[:MAX_VIEWS]
    sheet = _Sheet(set(story.truth or ()))
    top = _header(sheet, story)
    bottom = max(_overview(sheet, top, photo, views), _labels(sheet, top, story))
    more = f" (and {len(story.views) - len(views)} more)" if len(story.views) > len(views) else ""
    asked = f"Where the student's activation maps point, and what CLIP says of each crop{more}"
    caption = asked if views else "CLIP was asked nothing: the student pointed at no place."
    sheet.text((_MARGIN, bottom + 18), caption, 17, _INK, WIDTH - 2 * _MARGIN)
    bottom += 50
    for start in range(0, len(views), _COLUMNS):
        row = list(enumerate(views))[start : start + _COLUMNS]
        bottom = max(_panel(sheet, bottom, photo, number, view) for number, view in row) + _GAP
    return sheet.canvas.crop((0, 0, WIDTH, bottom))


def _check(story: Story) -> None:
    for name, value in (*story.before.items(), *story.after.items()):
        if not math.isfinite(value):
            raise DataError(f"{story.title}: label of class {name!r}: {value} cannot be drawn; make the label anew")
    for number, view in enumerate(story.views, start=1):
        where = f"{story.title}: view {number} (class {view.name!r})"
        if not np.isfinite([view.probability, *view.box, *(score for _, score in view.answer)]).all():
            raise DataError(f"{where}: its probability, box or scores hold NaN or infinity; make the view anew")
        if view.cam.ndim != 2 or not view.cam.size or not np.isfinite(view.cam).all():
            raise DataError(f"{where}: its activation map {list(view.cam.shape)} is not a finite [h, w] matrix")


class _Sheet:
    """White paper, and the few things that are drawn on it more than once."""

    def __init__(self, truth: set[str]) -> None:
        # Higher than the fullest picture; what stays empty is cut off at the end.
        self.canvas = Image.new("RGB", (WIDTH, 2000), "white")
        self.brush = ImageDraw.Draw(self.canvas)
        self.truth = truth

    def text(self, at: tuple[float, float], text: str, size: int, colour: str, width: float) -> float:
        """Write one line from its left upper corner, cut to `width`; returns its length."""
        line = _cut(text, size, width)
        self.brush.text(at, line, fill=colour, font=_font(size))
        return _font(size).getlength(line)

    def number(self, right: float, y: float, text: str, size: int, colour: str) -> None:
        self.brush.text((right, y), text, fill=colour, font=_font(size), anchor="ra")

    def tick(self, x: float, y: float) -> None:
        """Draw the mark of a true class, 12 pixels wide, with its left upper corner at (x, y)."""
        self.brush.line([(x, y + 6), (x + 4, y + 11), (x + 12, y)], fill=_TICK, width=3, joint="curve")

    def photo(self, x: int, y: int, photo: Image.Image, room: tuple[int, int], lowest: int) -> tuple[int, int, int]:
        """Paste a picture that fits the room onto a gray ground; returns its left and upper edge, and the bottom."""
        height = max(photo.height, lowest)
        self.brush.rectangle((x, y, x + room[0] - 1, y + height - 1), fill=_FAINT)
        left, upper = x + (room[0] - photo.width) // 2, y + (height - photo.height) // 2
        self.canvas.paste(photo, (left, upper))
        return left, upper, y + height

    def outline(self, box: tuple[float, ...], number: int) -> None:
        """Draw a box in the colour of its view, cased in white so that it stands out on every photo."""
        x0, y0, x1, y1 = (round(edge) for edge in box)
        self.brush.rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), outline="white", width=5)
        self.brush.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=COLOURS[number], width=3)

    def badge(self, x: float, y: float, number: int) -> None:
        self.brush.rectangle((x, y, x + _BADGE, y + _BADGE), fill=COLOURS[number], outline="white")
        ink, middle = "white" if number in {0, 2, 3} else "black", (x + _BADGE / 2 + 0.5, y + _BADGE / 2)
        self.brush.text(middle, str(number + 1), fill=ink, font=_font(16), anchor="mm")


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _cut(text: str, size: int, width: float) -> str:
    """Shorten a text to one line of `width` pixels; what is left out becomes an ellipsis."""
    # No line holds more than WIDTH characters, and a line break would make two lines.
    line = "".join(character if character.isprintable() else " " for character in text[:WIDTH])
    if _font(size).getlength(line) <= width:
        return line
    fitting = bisect_right(range(len(line)), width, key=lambda count: _font(size).getlength(line[:count] + "…"))
    return line[: max(0, fitting - 1)].rstrip() + "…"


def _fit(image: Image.Image, room: tuple[int, int]) -> Image.Image:
    """Scale an image up or down to fill a room, with its aspect kept; at least one pixel a side."""
    scale = min(room[0] / image.width, room[1] / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _inside(box: tuple[float, float, float, float], image: Image.Image) -> tuple[float, float, float, float]:
    """Cut a box to the image, with its corners in order."""
    x0, x1 = sorted(min(max(x, 0.0), float(image.width)) for x in box[::2])
    y0, y1 = sorted(min(max(y, 0.0), float(image.height)) for y in box[1::2])
    return x0, y0, x1, y1


def _scaled(view: LookedAt, photo: Image.Image, small: Image.Image, left: int, upper: int) -> tuple[float, ...]:
    """Box of a view where the scaled photo lies on the sheet; a box without area becomes a mark that can be seen."""
    x0, y0, x1, y1 = _inside(view.box, photo)
    across, down = (small.width - 1) / photo.width, (small.height - 1) / photo.height  # pixels of the sheet a pixel
    x, y = left + (x0 + x1) / 2 * across, upper + (y0 + y1) / 2 * down
    half, tall = max((x1 - x0) * across, 6) / 2, max((y1 - y0) * down, 6) / 2
    return x - half, y - tall, x + half, y + tall


def _crop(photo: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """Cut the view out; a box without area gives the pixel that it points at."""
    x0, y0, x1, y1 = _inside(box, photo)
    left, upper = min(math.floor(x0), photo.width - 1), min(math.floor(y0), photo.height - 1)
    return photo.crop((left, upper, max(math.ceil(x1), left + 1), max(math.ceil(y1), upper + 1)))


def _header(sheet: _Sheet, story: Story) -> int:
    """Write title and truth; returns where the next row begins."""
    sheet.text((_MARGIN, 16), story.title, 26, _INK, WIDTH - 2 * _MARGIN)
    if story.truth:
        sheet.tick(_MARGIN, 57)
    names = ", ".join(story.truth or ()) or "none of the classes"
    truth = "what is really in the image is unknown" if story.truth is None else f"really in the image: {names}"
    sheet.text((_MARGIN + (20 if story.truth else 0), 52), truth, 17, _MUTED, WIDTH - 2 * _MARGIN - 20)
    return 86


def _overview(sheet: _Sheet, top: int, photo: Image.Image, views: list[LookedAt]) -> int:
    """Draw the photo with all boxes; returns its lower edge."""
    small = _fit(photo, _OVERVIEW)
    left, upper, bottom = sheet.photo(_MARGIN, top, small, _OVERVIEW, 160)
    boxes: list[tuple[float, ...]] = []
    for number, view in enumerate(views):
        box = _scaled(view, photo, small, left, upper)
        # Boxes that coincide are drawn one inside the other, or only the last would be seen.
        equal = sum(max(abs(a - b) for a, b in zip(box, other, strict=True)) < 5 for other in boxes)
        inset = min(5 * equal, int(min(box[2] - box[0], box[3] - box[1]) / 2))
        boxes.append(box)
        sheet.outline((box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset), number)
    taken: list[tuple[float, float]] = []
    for number, box in enumerate(boxes):
        x = max(left, min(box[0], left + small.width - _BADGE))
        y = max(upper, min(box[1], upper + small.height - _BADGE))
        while any(abs(x - other) <= _BADGE and abs(y - level) <= _BADGE for other, level in taken):
            x, y = (x + _BADGE + 1, y) if x + 2 * _BADGE < left + small.width else (left, y + _BADGE + 1)
        taken.append((x, y))
        sheet.badge(x, y, number)
    return bottom


def _labels(sheet: _Sheet, top: int, story: Story) -> int:
    """Draw the label before and after as bars; returns the lower edge."""
    left, right = _MARGIN + _OVERVIEW[0] + 32, WIDTH - _MARGIN
    x = left + sheet.text((left, top), "Label of the image", 17, _INK, 200) + 28
    for colour, word in ((BEFORE_COLOUR, "before"), (AFTER_COLOUR, "after")):
        sheet.brush.rectangle((x, top + 3, x + _BAR, top + 3 + _BAR), fill=colour)
        x += 22 + sheet.text((x + 22, top), word, 17, _MUTED, 80) + 18
    sheet.number(right, top, "change", 15, _MUTED)
    before, after = story.before, story.after
    largest = {name: max(before.get(name, 0.0), after.get(name, 0.0)) for name in {**before, **after}}
    shown = sorted(largest, key=lambda name: (-largest[name], name))[:MAX_CLASSES]
    for row, name in enumerate(shown):
        _label_row(sheet, (left, top + 36 + row * _ROW), right, name, story)
    return top + 36 + len(shown) * _ROW


def _label_row(sheet: _Sheet, at: tuple[int, int], right: int, name: str, story: Story) -> None:
    """Draw the two bars of one class, with their values and the change."""
    (left, y), before, after = at, story.before.get(name), story.after.get(name)
    start, end = left + 180, right - 118
    if name in sheet.truth:
        sheet.tick(left, y + 11)
    sheet.text((left + 18, y + 7), name, 16, _INK, 152)
    for upper, value, colour in ((y, before, BEFORE_COLOUR), (y + _BAR + 2, after, AFTER_COLOUR)):
        sheet.brush.rectangle((start, upper, end, upper + _BAR), fill=_FAINT)
        if length := round((end - start) * min(max(value or 0.0, 0.0), 1.0)):
            sheet.brush.rectangle((start, upper, start + length, upper + _BAR), fill=colour)
        sheet.number(end + 46, upper, "-" if value is None else f"{value:.2f}", 14, _MUTED)
    if before is not None and after is not None:
        change = round(after - before, 2) + 0.0  # adding zero takes the sign from -0.0
        sheet.number(right, y + 7, f"{change:+.2f}", 16, _INK if abs(change) >= 0.05 else _MUTED)


def _panel(sheet: _Sheet, top: int, photo: Image.Image, number: int, view: LookedAt) -> int:
    """Draw one view: its map over the photo, what the student looked for, the crop, CLIP's answers."""
    x = _MARGIN + number % _COLUMNS * (_PANEL + _GAP)
    small = _fit(photo, (_PANEL, 250))
    left, upper, y = sheet.photo(x, top, overlay(small, view.cam), (_PANEL, 250), 80)
    sheet.outline(_scaled(view, photo, small, left, upper), number)
    sheet.badge(x, y + 10, number)
    sheet.text((x + 32, y + 11), f"student: {view.name}", 17, _INK, _PANEL - 90)
    sheet.number(x + _PANEL, y + 11, f"{view.probability:.2f}", 17, _INK)
    y, left, right = y + 44, x + _CROP + 14, x + _PANEL
    sheet.photo(x, y, _fit(_crop(photo, view.box), (_CROP, _CROP)), (_CROP, _CROP), _CROP)
    sheet.text((left, y), "CLIP says of the crop" if view.answer else "CLIP said nothing", 14, _MUTED, 200)
    for row, (name, score) in enumerate(view.answer[:MAX_ANSWERS]):
        upper = y + 24 + row * 25
        if name == view.name:
            sheet.brush.rectangle((left - 4, upper - 1, right, upper + 22), fill=_AGREES)
        if name in sheet.truth:
            sheet.tick(left, upper + 4)
        figure = _cut(f"{score:.2f}", 16, 80)
        sheet.text((left + 18, upper), name, 16, _INK, right - left - 30 - _font(16).getlength(figure))
        sheet.number(right - 4, upper, figure, 16, _INK)
    return y + _CROP
