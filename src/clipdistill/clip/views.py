"""View tables: everything CLIP looks at is an image row and a box in that image's own pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipdistill import store
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ArtifactError
from clipdistill.params import SnippetViewParams

Sides = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ViewTable:
    """V views of N images, in image order.

    Attributes:
        box: float32 [V, 4]: x0, y0, x1, y1 in pixels of the upright image; x1 and y1 exclusive.
        offset: int64 [N + 1]; the views of image i are rows offset[i] to offset[i + 1].
    """

    box: npt.NDArray[np.float32]
    offset: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.box)

    @property
    def uniform_count(self) -> int | None:
        """Views an image, where all images have the same number of them."""
        counts = np.diff(self.offset)
        return int(counts[0]) if len(counts) and (counts == counts[0]).all() else None

    def images_of(self, start: int, stop: int) -> tuple[int, int]:
        """First image and the image after the last that have a view in rows [start, stop)."""
        first = int(np.searchsorted(self.offset, start, side="right")) - 1
        last = int(np.searchsorted(self.offset, stop, side="left"))
        return first, last


def whole(table: ImageTable) -> ViewTable:
    """One view an image: the image (CDUL Eq. 1)."""
    zeros = np.zeros(len(table), dtype=np.float32)
    box = np.stack([zeros, zeros, table.widths, table.heights], axis=1).astype(np.float32)
    return ViewTable(box, np.arange(len(table) + 1, dtype=np.int64))


def snippets(table: ImageTable, params: SnippetViewParams) -> ViewTable:
    """Snippets of every image (CDUL Eq. 3): cells of a grid, or square tiles of `params.tile` pixels.

    Without overlap the cells of a grid hold every pixel exactly once. Tiles hold every pixel; the last in a row or
    column is drawn back to the border. A side shorter than asked for gives cells of one pixel, or one tile.

    Args:
        table: N images.
        params: section `views.snippets`.

    Returns:
        Row by row, left to right, for each image.
    """
    columns = _axis(table.widths, params)
    rows = _axis(table.heights, params)
    return _product(columns, rows)


def cells(table: ImageTable, grid: int) -> ViewTable:
    """Cells of an encoder's own map over every whole image: `grid` a side, row by row."""
    return snippets(table, SnippetViewParams(grid=grid))


def stored(path: Path, table: ImageTable) -> ViewTable:
    """Read a view table that a stage has written: arrays `box` [V, 4] and `offset` [N + 1].

    Raises:
        ArtifactError: it is missing or altered, of another table, or no view table of N images; or a box is empty or
            shows nothing of its image.
    """
    group = store.read_group(path, {"table": table.fingerprint})
    views, cure = ViewTable(group.read("box"), group.read("offset")), "run `dvc repro` to make it anew"
    counts = np.diff(views.offset, prepend=0)
    if views.box.shape != (len(views), 4) or len(counts) != len(table) + 1 or counts.min() < 0 or counts[0]:
        raise ArtifactError(f"{path} is no view table of {len(table)} images: {cure}")
    if views.offset[-1] != len(views):
        raise ArtifactError(f"{path} has {len(views)} views, but its images {views.offset[-1]}: {cure}")
    x0, y0, x1, y1 = views.box.T
    width, height = (np.repeat(side, counts[1:]) for side in (table.widths, table.heights))
    # Written so that NaN counts as outside.
    seen = (x0 < np.minimum(x1, width)) & (y0 < np.minimum(y1, height)) & (x1 > 0) & (y1 > 0)
    if not seen.all():
        row = int(np.argmin(seen))
        raise ArtifactError(f"{path}: box {row}, {views.box[row].tolist()}, shows nothing of its image: {cure}")
    return views


@dataclass(frozen=True, slots=True)
class _Axis:
    """Intervals along one axis: count [N]; starts and ends as flat arrays, those of image i after those of i - 1."""

    count: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]


def _axis(sides: Sides, params: SnippetViewParams) -> _Axis:
    return _tiles(sides, params.tile, params.overlap) if params.tile else _cells(sides, params.grid, params.overlap)


def _cells(sides: Sides, grid: int, overlap: float) -> _Axis:
    side = sides.astype(np.float64)[:, None]
    length = side / (grid - (grid - 1) * overlap)
    begin = np.arange(grid) * (1 - overlap) * length
    start = np.minimum(np.rint(begin), side - 1).astype(np.int64)
    end = np.maximum(np.rint(begin + length).astype(np.int64), start + 1)
    return _Axis(np.full(len(sides), grid, dtype=np.int64), start.ravel(), end.ravel())


def _tiles(sides: Sides, tile: int, overlap: float) -> _Axis:
    side = sides.astype(np.int64)
    stride = max(1, round(tile * (1 - overlap)))
    count = 1 + np.maximum(0, -(-(side - tile) // stride))
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    long_side = np.repeat(side, count)
    start = np.clip(within * stride, 0, np.maximum(long_side - tile, 0))
    return _Axis(count, start, np.minimum(start + tile, long_side))


def _product(columns: _Axis, rows: _Axis) -> ViewTable:
    """All pairs of a row interval and a column interval of the same image."""
    count = columns.count * rows.count
    offset = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    within = np.arange(offset[-1]) - np.repeat(offset[:-1], count)
    per_row = np.repeat(columns.count, count)
    column = np.repeat(np.cumsum(columns.count) - columns.count, count) + within % per_row
    row = np.repeat(np.cumsum(rows.count) - rows.count, count) + within // per_row
    box = np.stack([columns.start[column], rows.start[row], columns.end[column], rows.end[row]], axis=1)
    return ViewTable(box.astype(np.float32), offset)
