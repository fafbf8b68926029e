"""A class activation map over the image that it was made from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

# Dark to light in five steps, with lightness rising all the way: it reads the same in gray.
_HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64)


def scaled(cam: npt.NDArray[np.float32]) -> Image.Image:
    """An activation map, finite [h, w], as an image of floats from 0 at its coldest to 1 at its hottest place.

    A constant map is 0 throughout.
    """
    values = cam.astype(np.float64) - float(cam.min())
    return Image.fromarray((values / (values.max() or 1.0)).astype(np.float32))


def coloured(heat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Colours of heat in [0, 1], of any shape: R, G, B in [0, 255] along a further axis."""
    return np.stack([np.interp(heat * (len(_HEAT) - 1), range(len(_HEAT)), level) for level in _HEAT.T], axis=-1)


def overlay(photo: Image.Image, cam: npt.NDArray[np.float32]) -> Image.Image:
    """Lay an activation map over a photo: the hotter, the less of the photo is seen; a constant map is cold.

    Args:
        photo: RGB.
        cam: finite [h, w], of any range, over the whole photo.

    Returns:
        RGB, of the photo's size.
    """
    heat = scaled(cam)
    large = np.asarray(heat.resize(photo.size, Image.Resampling.BILINEAR), dtype=np.float64)
    colours = coloured(large)
    opacity = 0.25 + 0.45 * large.clip(0.0, 1.0)[..., None]
    gray = np.asarray(photo.convert("L"), dtype=np.float64)[..., None]
    return Image.fromarray((opacity * colours + (1 - opacity) * gray).round().astype(np.uint8))
