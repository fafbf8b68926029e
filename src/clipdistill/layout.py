"""How an array lies in files of rows, and arrays too large for memory: they come in blocks and go out file by file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipdistill.errors import ArtifactError

Array = npt.NDArray[Any]

_CHUNK_BYTES = 2**20
# What is held of an array that comes in blocks; few files, since DVC hashes and links each of them.
_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Layout of one array.

    Attributes:
        shape: whole shape; the first axis is the one that is split.
        dtype: NumPy type name.
        shard_rows: rows a file; None: one file.
    """

    shape: tuple[int, ...]
    dtype: str
    shard_rows: int | None = None

    @property
    def rows(self) -> int:
        """Rows a file, at least 1."""
        return max(1, self.shard_rows or self.shape[0])

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.shape[0] // self.rows)

    def range_of(self, shard: int) -> tuple[int, int]:
        """First row and the row after the last of a shard."""
        return shard * self.rows, min((shard + 1) * self.rows, self.shape[0])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, at least 1."""
        return max(1, int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(self.dtype).itemsize)

    @property
    def chunk_rows(self) -> int:
        """Rows a chunk inside a file, of 1 MiB at most: a power of two, or a divisor of the file's rows."""
        limit = max(1, min(_CHUNK_BYTES // self.row_bytes, self.rows))
        if self.shard_rows is None:
            return 1 << (limit.bit_length() - 1)
        return next(rows for rows in range(limit, 0, -1) if self.rows % rows == 0)


@dataclass(frozen=True, slots=True)
class Blocks:
    """An array that is made while it is written, and never whole in memory.

    Attributes:
        shape: whole shape; the first axis is the one that comes in blocks.
        dtype: NumPy type name.
        rows: its rows in order, in blocks of any size; read once.
    """

    shape: tuple[int, ...]
    dtype: str
    rows: Iterable[Array]

    @property
    def spec(self) -> ArraySpec:
        """Files of a power of two rows, 64 MiB at most; one file where that is enough."""
        whole = ArraySpec(self.shape, self.dtype)
        rows = 1 << (max(1, _FILE_BYTES // whole.row_bytes).bit_length() - 1)
        return ArraySpec(self.shape, self.dtype, rows) if rows < self.shape[0] else whole

    def files(self) -> Iterator[Array]:
        """The rows of one file after the other, however the blocks are cut; one file is held at a time.

        Raises:
            ArtifactError: the blocks do not add up to the shape, or one is of another width or type.
        """
        rows, done = self.spec.rows, 0
        file = np.empty((0, *self.shape[1:]), dtype=self.dtype)
        for block in self.rows:
            self._require_fit(block, done)
            for part in np.split(block, range(rows - done % rows, len(block), rows)):
                place = done % rows
                if place == 0:
                    file = np.empty((min(rows, self.shape[0] - done), *self.shape[1:]), dtype=self.dtype)
                file[place : place + len(part)] = part
                done += len(part)
                if len(part) and place + len(part) == len(file):
                    yield file
        if done != self.shape[0]:
            raise ArtifactError(f"{done} rows came of an array {self.dtype} {list(self.shape)}")

    def _require_fit(self, block: Array, done: int) -> None:
        fits = block.shape[1:] == self.shape[1:] and done + len(block) <= self.shape[0]
        if not fits or block.dtype != np.dtype(self.dtype):
            raise ArtifactError(
                f"after {done} rows of an array {self.dtype} {list(self.shape)} "
                f"came a block {block.dtype} {list(block.shape)}"
            )
