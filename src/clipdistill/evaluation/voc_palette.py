"""The colours in which PASCAL VOC shows the classes of a mask."""

from __future__ import annotations

import numpy as np


def voc_palette() -> bytes:
    """Red, green and blue of 256 indices: octal digit k of an index gives bit 7 - k of each."""
    digits = np.arange(256)[:, None] >> np.array([0, 3, 6])
    bits = digits[:, None] >> np.arange(3)[:, None] & 1
    return bytes((bits << np.array([7, 6, 5])).sum(axis=2).astype(np.uint8))
