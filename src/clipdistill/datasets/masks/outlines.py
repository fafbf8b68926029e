"""Outlines of objects as COCO writes them, polygons or runs of pixels, and the pixels that they cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from clipdistill.datasets.masks.masked import Size

Polygon = npt.NDArray[np.float32]
"""Corners float32 [2 K]: x and y of one after the other, in pixels from the image's upper left corner."""

# Pillow draws what lies within half a pixel of a polygon; on a finer grid that is little. Odd, so that a pixel of it
# lies in the middle of one of the image.
_FINER = 5
_FARTHEST = 1e6
# Pixels of the image that are drawn at once: each takes 25 bytes on the finer grid, a whole photograph gigabytes.
_BAND = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Lengths of runs of pixels outside and inside in turn, from outside on, column by column.

    Attributes:
        lengths: int32.
        size: of the image.
    """

    lengths: npt.NDArray[np.int32]
    size: Size


Outline: TypeAlias = Runs | tuple[Polygon, ...]


def pack(segmentation: Any) -> Outline:  # noqa: ANN401 - whatever JSON holds
    """Check an annotation's outline and keep it in a small space.

    Args:
        segmentation: a list of polygons, each a list of coordinates; or runs: {"counts": [...], "size": [H, W]}.

    Raises:
        TypeError: neither.
        ValueError: a polygon of fewer than three corners, a coordinate or length that is none, or runs in their
            compressed form.
    """
    if isinstance(segmentation, list):
        return tuple(map(_polygon, segmentation))
    if not isinstance(segmentation, dict) or not {"counts", "size"} <= set(segmentation):
        raise TypeError("neither a list of polygons nor runs with their counts and size")
    counts, size = segmentation["counts"], segmentation["size"]
    if not isinstance(counts, list):
        raise ValueError("its counts are compressed, a text; write them as a list of numbers")
    if not _all_whole(counts) or not isinstance(size, list) or len(size) != 2 or not _all_whole(size):
        raise ValueError("counts and size must be lists of whole numbers, 0 or greater, size of two")
    return Runs(np.array(counts, np.int32), (size[1], size[0]))


def _polygon(corners: Any) -> Polygon:  # noqa: ANN401 - as above
    if not isinstance(corners, list) or not all(type(value) in (int, float) for value in corners):
        raise TypeError("a polygon is not a list of numbers")
    found = np.array(corners, np.float64)
    if len(found) < 6 or len(found) % 2 or not bool((np.abs(found) <= _FARTHEST).all()):
        raise ValueError("a polygon must have 3 corners or more, of two coordinates each, in pixels")
    return found.astype(np.float32)


def _all_whole(values: list[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def covered(outline: Outline, size: Size) -> npt.NDArray[np.bool_]:
    """The pixels of an image that an outline covers: of a polygon, those whose middle lies in it.

    Args:
        outline: as `pack` gives it; several polygons are parts of one object.
        size: width and height of the image.

    Returns:
        bool [H, W].

    Raises:
        ValueError: runs of another size, or that do not fill it.
    """
    if isinstance(outline, Runs):
        return _inside_runs(outline, size)
    inside = np.zeros(size[::-1], np.bool_)
    if not outline:
        return inside
    corners = np.concatenate(outline).reshape(-1, 2)
    left, top = (int(value) for value in np.floor(corners.min(axis=0)).clip(0, size))
    right, bottom = (int(value) for value in np.ceil(corners.max(axis=0)).clip(0, size))
    if left < right and top < bottom:
        # Pillow counts from the middle of a pixel. It drops fractions: here, so that bands draw what the whole would.
        places = [np.trunc((polygon.reshape(-1, 2) - (left, top)) * _FINER - 0.5) for polygon in outline]
        rows = max(1, _BAND // (right - left))
        for first in range(top, bottom, rows):
            band = inside[first : min(first + rows, bottom), left:right]
            band[:] = _drawn([polygon - (0, (first - top) * _FINER) for polygon in places], band.shape)
    return inside


def _drawn(polygons: list[npt.NDArray[np.float64]], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """The pixels bool [H, W] whose middle polygons [K, 2] on the finer grid cover."""
    height, width = shape
    canvas = Image.new("L", (width * _FINER, height * _FINER))
    for polygon in polygons:
        ImageDraw.Draw(canvas).polygon(polygon.ravel().tolist(), fill=1)
    # The nearest to the middle of a pixel is the middle one of the grid.
    return np.asarray(canvas.resize((width, height), Image.Resampling.NEAREST)) > 0


def _inside_runs(runs: Runs, size: Size) -> npt.NDArray[np.bool_]:
    if runs.size != size or int(runs.lengths.sum(dtype=np.int64)) != size[0] * size[1]:
        raise ValueError(
            f"its runs are of {runs.size[0]} x {runs.size[1]} pixels and fill {runs.lengths.sum(dtype=np.int64)}, but "
            f"the image has {size[0]} x {size[1]}"
        )
    turns = np.arange(len(runs.lengths)) % 2 == 1
    return np.repeat(turns, runs.lengths).reshape(size).T
