"""A class activation map over the image that it was made from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

# Dark to light in five steps, with lightness rising all the way: it reads the same in gray.
HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64)


def overlay(photo: Image.Image, cam: npt.NDArray[np.float32]) -> Image.Image:
    """Lay an activation map over a photo: the hotter, the less of the photo is seen; a constant map is cold.

    Args:
        photo: RGB.
        cam: finite [h, w], of any range, over the whole photo.

    Returns:
        RGB, of the photo's size.
    """
    values = cam.astype(np.float64) - float(cam.min())
    heat = Image.fromarray((values / (values.max() or 1.0)).astype(np.float32))
    large = np.asarray(heat.resize(photo.size, Image.Resampling.BILINEAR), dtype=np.float64)
    colours = np.stack([np.interp(large * (len(HEAT) - 1), range(len(HEAT)), level) for level in HEAT.T], axis=-1)
    opacity = 0.25 + 0.45 * large.clip(0.0, 1.0)[..., None]
    gray = np.asarray(photo.convert("L"), dtype=np.float64)[..., None]
    return Image.fromarray((opacity * colours + (1 - opacity) * gray).round().astype(np.uint8))
