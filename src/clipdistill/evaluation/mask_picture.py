"""An image, its true mask and the predicted one side by side, in VOC's colours."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipdistill.evaluation.voc_palette import voc_palette

_HEIGHT, _WIDTH, _GAP = 384, 512, 4


def draw(image: Image.Image, truth: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8]) -> bytes:
    """Draw the three.

    Args:
        image: RGB.
        truth: uint8 [H, W], labels.
        predicted: uint8 [H, W], labels.

    Returns:
        A PNG of no more than 384 pixels in height and 512 a part in width; equal input gives equal bytes.
    """
    factor = min(1.0, _HEIGHT / image.height, _WIDTH / image.width)
    width, height = (max(1, round(side * factor)) for side in image.size)
    parts = [image, _coloured(truth), _coloured(predicted)]
    rules = [Image.Resampling.BICUBIC, Image.Resampling.NEAREST, Image.Resampling.NEAREST]
    picture = Image.new("RGB", (3 * width + 2 * _GAP, height), "white")
    for place, (part, rule) in enumerate(zip(parts, rules, strict=True)):
        picture.paste(part.resize((width, height), rule).convert("RGB"), (place * (width + _GAP), 0))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _coloured(mask: npt.NDArray[np.uint8]) -> Image.Image:
    coloured = Image.fromarray(mask).convert("P")
    coloured.putpalette(voc_palette())
    return coloured
