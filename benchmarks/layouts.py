"""Ways to store one array of embeddings, for `benchmarks/store.py`: each writes a folder and reads rows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from clipdistill import store
from clipdistill.clip import embed
from clipdistill.clip.views import ViewTable
from clipdistill.work import Work

PUBLISHED, PROJECT = "one .pt an image", "zarr, the project's"

ReadRows = Callable[[int, int], store.Array]
"""Rows [start, stop) of a stored array that is open."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to store the array.

    Attributes:
        write: array and a folder that does not exist yet.
        open: that folder to a reader of rows.
    """

    write: Callable[[store.Array, Path], None]
    open: Callable[[Path], ReadRows]


def one_pt_an_image(views: int) -> Layout:
    """A file of [views, width] for each image, its row in its name."""

    def write(array: store.Array, folder: Path) -> None:
        folder.mkdir()
        for image in range(len(array) // views):
            # A clone: a slice would be saved with the storage of the whole array.
            rows = torch.from_numpy(array[image * views : (image + 1) * views]).clone()
            torch.save(rows, folder / f"{image:06d}.pt")

    def open_folder(folder: Path) -> ReadRows:
        def read(start: int, stop: int) -> store.Array:
            files = (folder / f"{image:06d}.pt" for image in range(start // views, stop // views))
            return torch.cat([torch.load(file, weights_only=True) for file in files]).numpy()

        return read

    return Layout(write, open_folder)


def one_npy() -> Layout:
    """The whole array in NumPy's format."""

    def write(array: store.Array, folder: Path) -> None:
        folder.mkdir()
        np.save(folder / "embedding.npy", array)

    def open_folder(folder: Path) -> ReadRows:
        mapped = np.load(folder / "embedding.npy", mmap_mode="r")
        return lambda start, stop: np.array(mapped[start:stop])

    return Layout(write, open_folder)


def the_projects(views: int) -> Layout:
    """An artifact as `embed` leaves it, without the arrays of boxes."""

    def write(array: store.Array, folder: Path) -> None:
        offset = np.arange(0, len(array) + 1, views, dtype=np.int64)
        rows = embed.shard_rows(ViewTable(np.zeros((len(array), 4), dtype=np.float32), offset))
        spec = store.ArraySpec(array.shape, str(array.dtype), rows)
        work = Work("benchmark", {"layout": folder.name}, {"embedding": spec}, {}, {})
        for shard in work.pending():
            start, stop = spec.range_of(shard)
            work.write(shard, {"embedding": array[start:stop]})
        work.seal(folder)
        work.discard()

    def open_folder(folder: Path) -> ReadRows:
        group = store.read_group(folder)
        return lambda start, stop: group.read("embedding", start, stop)

    return Layout(write, open_folder)


def zarr_array(rows: int | None, chunk_kib: int, sharded: bool) -> Layout:
    """A Zarr array with the project's codecs.

    Args:
        rows: of a shard; None: one shard for the whole array.
        chunk_kib: KiB of a chunk before compression; its rows are the power of two below, and no more than a shard's.
        sharded: False: a file for each chunk, and `rows` says nothing.
    """

    def write(array: store.Array, folder: Path) -> None:
        limit = min(chunk_kib * 1024 // array[0].nbytes, rows or len(array))
        inner = 1 << (max(1, limit).bit_length() - 1)
        shard = -(-(rows or len(array)) // inner) * inner
        target = zarr.create_array(
            store=str(folder),
            shape=array.shape,
            dtype=array.dtype,
            chunks=(inner, array.shape[1]),
            shards=(shard, array.shape[1]) if sharded else None,
            compressors=store._COMPRESSORS,
            config={"write_empty_chunks": True},
        )
        for start in range(0, len(array), shard):
            target[start : start + shard] = array[start : start + shard]

    def open_folder(folder: Path) -> ReadRows:
        opened: Any = zarr.open_array(str(folder), mode="r")
        return lambda start, stop: np.asarray(opened[start:stop])

    return Layout(write, open_folder)


def every(images: int, views: int, shard_rows: list[int], chunk_kib: list[int]) -> dict[str, Layout]:
    """All layouts by name, the published one first.

    Args:
        images: images of the array.
        views: rows an image.
        shard_rows: rows of a shard, beside one shard for the whole array; as large as that are left out.
        chunk_kib: sizes of a chunk before compression.
    """
    found = {PUBLISHED: one_pt_an_image(views), "one .npy": one_npy(), PROJECT: the_projects(views)}
    smaller = [rows for rows in shard_rows if rows < images * views]
    for kib in chunk_kib:
        for rows in smaller:
            found[f"zarr {rows}-row shards, {kib} KiB chunks"] = zarr_array(rows, kib, sharded=True)
        found[f"zarr one shard, {kib} KiB chunks"] = zarr_array(None, kib, sharded=True)
        found[f"zarr no shards, {kib} KiB chunks"] = zarr_array(None, kib, sharded=False)
    return found
