"""Masks: images whose pixels that are not zero belong to what is meant."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clipdistill.datasets.images import UnreadableImageError, opened

# JPEG and WebP may leave something else where there was zero.
FORMATS = ("PNG", "BMP", "GIF", "TIFF")


def decode(data: bytes, name: str, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Decode a mask.

    Of a palette the numbers count and not their colours, of colours each channel, of transparency nothing.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
        size: width and height of the upright image that it belongs to.

    Returns:
        Bool [H, W], true where the mask is not zero.

    Raises:
        UnreadableImageError: not an image of a known format without loss, truncated, or of another size.
    """
    with opened(data, name, FORMATS, "an image of a format that keeps zeros") as image:
        if image.size != size:
            raise UnreadableImageError(
                f"{name}: has {image.width} x {image.height} pixels, the upright image {size[0]} x {size[1]}; a mask "
                "needs those of its image"
            )
        if image.mode == "F":
            raise UnreadableImageError(f"{name}: has samples of floating point, which may be NaN; save it with 8 bits")
        image.load()
        values = np.asarray(image)
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa"):
        values = values[..., :-1]
    return np.asarray(values.any(axis=2) if values.ndim == 3 else values != 0, np.bool_)
