"""A photo beside the maps of a caption and of its words: what CLIP sees of each, and which words were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from clipdistill.evaluation.heat import overlay

_PANEL, _MARGIN, _LINE, _COLUMNS, _SIZE = 260, 16, 30, 4, 17
_INK, _MUTED, _CHOSEN = "#202020", "#8A8A8A", "#00795A"


@dataclass(frozen=True, slots=True)
class WordMap:
    """Where a text is in an image.

    Attributes:
        text: a word, or the caption.
        cam: float32 [h, w], finite, of any range, over the whole image; None: the photo alone is drawn.
        score: in [0, 1]; None: none is written.
        chosen: framed, where a choice was made; None: there was none.
    """

    text: str
    cam: npt.NDArray[np.float32] | None
    score: float | None = None
    chosen: bool | None = None


def draw(photo: Image.Image, maps: Sequence[WordMap]) -> Image.Image:
    """Draw a panel for each map, four a row, under its text and score; each map has a scale of its own.

    Args:
        photo: RGB.
        maps: at least one.

    Returns:
        RGB, on white; the same for the same input.
    """
    small = photo.copy()
    small.thumbnail((_PANEL, _PANEL), Image.Resampling.LANCZOS)
    columns = min(_COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    step = (_PANEL + _MARGIN, small.height + _LINE + _MARGIN)
    sheet = Image.new("RGB", (columns * step[0] + _MARGIN, rows * step[1] + _MARGIN), "white")
    brush = ImageDraw.Draw(sheet)
    for number, item in enumerate(maps):
        left, top = _MARGIN + number % columns * step[0], _MARGIN + number // columns * step[1]
        _label(brush, (left, top), item)
        panel = small if item.cam is None else overlay(small, item.cam)
        sheet.paste(panel, (left, top + _LINE))
        if item.chosen:
            corner = (left - 3, top + _LINE - 3, left + small.width + 2, top + _LINE + small.height + 2)
            brush.rectangle(corner, outline=_CHOSEN, width=4)
    return sheet


def _label(brush: ImageDraw.ImageDraw, at: tuple[int, int], item: WordMap) -> None:
    font = ImageFont.load_default(_SIZE)
    score = "" if item.score is None else f"  {item.score:.2f}"
    text = item.text
    while text and brush.textlength(text + score, font) > _PANEL:
        text = f"{text.removesuffix('...')[:-1]}..." if len(text) > 4 else ""
    brush.text(at, text + score, fill=_MUTED if item.chosen is False else _INK, font=font)
