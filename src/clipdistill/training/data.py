"""Training images as arrays of pixels, and the order in which an epoch takes them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from clipdistill import distributed
from clipdistill.datasets.ahead import ahead
from clipdistill.students import preprocessing

logger = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]
Cache = Literal["auto", "memory", "none"]

# What `auto` keeps in memory, bytes.
MEMORY_LIMIT = 4_000_000_000

# Images handed to the threads together, where all are decoded.
_CHUNK = 64

_ORDER = 1


class Images(Protocol):
    """N images that are opened by row: an image table, or a table of captions."""

    def __len__(self) -> int: ...

    def open(self, row: int) -> Image.Image:
        """Read an image: RGB, upright."""


class ImageSource:
    """Images of a table, decoded and resized to the student's input.

    Threads do the decoding, a few batches ahead of the network.

    Args:
        table: N images.
        size: S, pixels.
        cache: memory keeps all pixels; none decodes an image each time; auto keeps them up to 4 GB. Where several
            processes keep them, each decodes its share and gets those of the others.
        workers: threads.
        pinned: give batches in page-locked memory, which a GPU copies while it computes.
    """

    def __init__(self, table: Images, size: int, cache: Cache, workers: int, pinned: bool = False) -> None:
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
        for images in ahead((rows.tolist() for rows in batches), self._decode, self._workers):
            batch = self._batch(len(images))
            np.stack(images, out=batch.numpy())
            yield batch

    def _batch(self, images: int) -> Tensor:
        return torch.empty((images, 3, self._size, self._size), dtype=torch.uint8, pin_memory=self._pinned)

    def _decode(self, row: int) -> preprocessing.Pixels:
        return preprocessing.resize(self._table.open(row), self._size)

    def _decode_all(self) -> Tensor:
        begin = time.monotonic()
        start, stop = distributed.slice_of(len(self))
        pixels = np.empty((stop - start, 3, self._size, self._size), dtype=np.uint8)

        def fill(row: int) -> None:
            pixels[row - start] = self._decode(row)

        chunks = (range(low, min(low + _CHUNK, stop)) for low in range(start, stop, _CHUNK))
        for _ in ahead(chunks, fill, self._workers):
            pass
        whole = distributed.gather_rows(torch.from_numpy(pixels), len(self))
        logger.info("decoded %d images in %.1f s", len(self), time.monotonic() - begin)
        return whole


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
