"""Pictures for the documentation: every class in every colour, and scenes with their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipdistill.datasets.scenes.drawing import Pose
from clipdistill.datasets.scenes.objects import CLASSES, COLOURS, draw_object
from clipdistill.datasets.scenes.voc_layout import scene_of

if TYPE_CHECKING:
    from clipdistill.params import ScenesParams

_PAPER = (250, 249, 246)
_INK = (52, 50, 56)
_FAINT = (120, 116, 124)


def contact_sheet(params: ScenesParams, side: int = 84) -> Image.Image:
    """Every class in every colour, upright, with names.

    Args:
        params: `seed` varies the drawings.
        side: longer side of a drawing, pixels.

    Returns:
        RGB picture: a column a class, a row a colour.
    """
    cell, header, margin = side + 16, 40, 84
    sheet = Image.new("RGB", (margin + cell * len(CLASSES), header + cell * len(COLOURS) + 8), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for row, colour in enumerate(COLOURS):
        middle = header + row * cell + cell // 2
        pen.text((16, middle), colour, _INK, font, anchor="lm")
        for column, name in enumerate(CLASSES):
            rng = np.random.default_rng([params.seed, row, column])
            sprite = draw_object(name, colour, side, rng, Pose())
            centre = margin + column * cell + cell // 2
            sheet.paste(sprite, (centre - sprite.width // 2, middle - sprite.height // 2), sprite)
    for column, name in enumerate(CLASSES):
        pen.text((margin + column * cell + cell // 2, header // 2 + 4), name, _INK, font, anchor="mm")
    return sheet


def scene_sheet(params: ScenesParams, split: str = "train", columns: int = 5, rows: int = 3) -> Image.Image:
    """The first scenes of a split, the names of their objects below them.

    Args:
        params: as for `generate_scenes`.
        split: `train` or `val`.
        columns: scenes side by side.
        rows: scenes one below another.

    Returns:
        RGB picture.
    """
    gap, side = 14, params.image_size
    width, height = side + gap, side + gap + 38
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for index in range(columns * rows):
        scene = scene_of(params, split, index)
        left, top = gap + index % columns * width, gap + index // columns * height
        sheet.paste(scene.image, (left, top))
        names = sorted({item.name for item in scene.objects}, key=CLASSES.index)
        for line in range(2):
            text = ", ".join(names[2 * line : 2 * line + 2])
            pen.text((left + side // 2, top + side + 12 + 17 * line), text, _FAINT, font, anchor="mm")
    return sheet
