"""The captioned images as an array and a table."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdistill import store
from clipdistill.datasets.scenes.captioned import draw_rows
from clipdistill.datasets.scenes.making import in_chunks, whole_folder

if TYPE_CHECKING:
    from pathlib import Path

    from clipdistill.params import ScenesParams

_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("objects", pa.list_(pa.string()), nullable=False),
    ]
)


def generate_captions(params: ScenesParams, out: Path, workers: int | None = None) -> None:
    """Draw the captioned images.

    Writes `images.zarr` (an artifact of `store`: `image` uint8 [captions, side, side, 3]) and
    `captions.parquet` (row, caption, objects). Image i depends on the seed, the side and i alone.

    Args:
        params: seed, number and side of the images.
        out: folder to make; one that is there is replaced. It appears when it is complete.
        workers: processes that draw; None: one a processor.

    Raises:
        ArtifactError: the folder cannot be written, or a worker was killed.
    """
    task = functools.partial(draw_rows, params.seed, params.caption_size)
    images = np.empty((params.captions, params.caption_size, params.caption_size, 3), dtype=np.uint8)
    captions: list[str] = []
    objects: list[list[str]] = []
    with whole_folder(out) as folder:
        for rows, drawn in in_chunks(task, params.captions, workers):
            images[rows.start : rows.stop] = drawn[0]
            captions += drawn[1]
            objects += drawn[2]
        provenance = {"seed": params.seed, "captions": params.captions, "caption_size": params.caption_size}
        store.write_group(folder / "images.zarr", {"image": images}, provenance)
        _write_table(folder / "captions.parquet", captions, objects)


def _write_table(path: Path, captions: list[str], objects: list[list[str]]) -> None:
    columns = [range(len(captions)), captions, objects]
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, _SCHEMA, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), path)
