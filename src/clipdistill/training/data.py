"""Training images as arrays of pixels, and the order in which an epoch takes them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipdistill import distributed
from clipdistill.datasets.table import ImageTable
from clipdistill.students import preprocessing

logger = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]
Cache = Literal["auto", "memory", "none"]

# What `auto` keeps in memory, bytes.
MEMORY_LIMIT = 4_000_000_000

# Batches that are decoded while the network works on the one before.
_AHEAD = 3

_ORDER = 1


class ImageSource:
    """Images of a table, decoded and resized to the student's input.

    Threads do the decoding: Pillow and the hash let go of the interpreter's lock.

    Args:
        table: N images.
        size: S, pixels.
        cache: memory keeps all pixels; none decodes an image each time; auto keeps them up to 4 GB. Where several
            processes keep them, each decodes its share and gets those of the others.
        workers: threads.
        pinned: give batches in page-locked memory, which a GPU copies while it computes.
    """

    def __init__(self, table: ImageTable, size: int, cache: Cache, workers: int, pinned: bool = False) -> None:
        self._table, self._size, self._workers, self._pinned = table, size, workers, pinned
        needed = len(table) * 3 * size * size
        kept = cache == "memory" or (cache == "auto" and needed <= MEMORY_LIMIT)
        self._pixels = self._decode_all() if kept else None

    def __len__(self) -> int:
        return len(self._table)

    def batches(self, batches: Iterable[Rows]) -> Iterator[Tensor]:
        """Pixels of batches of rows, in their order.

        Args:
            batches: int64 [B] each.

        Yields:
            uint8 [B, 3, S, S].

        Raises:
            UnreadableImageError: a file is gone, changed or broken.
        """
        if self._pixels is not None:
            for rows in batches:
                yield torch.index_select(self._pixels, 0, torch.from_numpy(rows), out=self._batch(len(rows)))
            return
        with _pool(self._workers) as pool:
            waiting: deque[list[Future[preprocessing.Pixels]]] = deque()
            for rows in batches:
                waiting.append([pool.submit(self._decode, int(row)) for row in rows])
                if len(waiting) > _AHEAD:
                    yield self._joined(waiting.popleft())
            while waiting:
                yield self._joined(waiting.popleft())

    def _batch(self, images: int) -> Tensor:
        return torch.empty((images, 3, self._size, self._size), dtype=torch.uint8, pin_memory=self._pinned)

    def _joined(self, images: list[Future[preprocessing.Pixels]]) -> Tensor:
        batch = self._batch(len(images))
        np.stack([image.result() for image in images], out=batch.numpy())
        return batch

    def _decode(self, row: int) -> preprocessing.Pixels:
        return preprocessing.resize(self._table.open(row), self._size)

    def _decode_all(self) -> Tensor:
        begin = time.monotonic()
        start, stop = distributed.slice_of(len(self))
        pixels = np.empty((stop - start, 3, self._size, self._size), dtype=np.uint8)

        def fill(row: int) -> None:
            pixels[row - start] = self._decode(row)

        with _pool(self._workers) as pool:
            for _ in pool.map(fill, range(start, stop)):
                pass
        whole = distributed.gather_rows(torch.from_numpy(pixels), len(self))
        logger.info("decoded %d images in %.1f s", len(self), time.monotonic() - begin)
        return whole


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that drops what is waiting when its block ends early."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def epoch_batches(images: int, batch_size: int, seed: int, epoch: int, smallest: int = 2) -> list[Rows]:
    """Deal the images of an epoch into batches, each image once.

    The order depends on the seed and the epoch alone, so that a resumed run and any number of processes go through
    the same batches.

    Args:
        images: N.
        batch_size: over all processes.
        seed: of the run.
        epoch: from 1.
        smallest: a last batch of fewer images joins the one before it: batch normalisation needs 2, and each process
            needs 1.

    Returns:
        Batches of rows, int64.
    """
    order = np.random.default_rng([seed, epoch, _ORDER]).permutation(images)
    batches = np.split(order, range(batch_size, images, batch_size))
    if len(batches) > 1 and len(batches[-1]) < smallest:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches
