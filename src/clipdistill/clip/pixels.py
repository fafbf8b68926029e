"""Pixels of views in full batches: each image decoded once, a few batches ahead of the encoder, in threads.

What is in memory at a time is a few batches and the images that are being cut, whatever the size of the data set and
however many views an image has.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from PIL import Image

from clipdistill.clip.preprocessing import ViewTransform
from clipdistill.clip.views import ViewTable
from clipdistill.datasets.table import ImageTable

# Batches that are being filled while the encoder works on those before.
_AHEAD = 4


@dataclass(slots=True)
class Batch:
    """Views [start, stop) of a view table.

    Attributes:
        start: first row.
        stop: row after the last.
        pixels: uint8 [stop - start, S, S, 3].
        parts: the images' shares of it, in the making.
    """

    start: int
    stop: int
    pixels: torch.Tensor
    parts: list[Future[None]] = field(default_factory=list)

    def wait(self) -> None:
        """Wait until all pixels are there.

        Raises:
            UnreadableImageError: a file is gone, changed or broken.
        """
        for part in self.parts:
            part.result()
        self.parts.clear()


class _OpenImage:
    """An image that the first of its views decodes, for all of them; let go of with the last."""

    def __init__(self, table: ImageTable, row: int) -> None:
        self._table, self.row = table, row
        self._lock = threading.Lock()
        self._image: Image.Image | None = None

    def get(self) -> Image.Image:
        with self._lock:
            if self._image is None:
                self._image = self._table.open(self.row)
            return self._image


@dataclass(frozen=True, slots=True)
class ViewSource:
    """Pixels of views.

    Attributes:
        table: N images.
        views: V views of them.
        transform: box to pixels.
        threads: that decode, crop and resize.
        pinned: give batches in page-locked memory, which a GPU copies while it computes.
    """

    table: ImageTable
    views: ViewTable
    transform: ViewTransform
    threads: int
    pinned: bool = False

    def batches(self, ranges: Sequence[tuple[int, int]], size: int) -> Iterator[Batch]:
        """Views of row ranges in order, as full batches; the last of a range is what is left.

        An image whose views are in several batches or in ranges one after the other is decoded once.

        Args:
            ranges: first row and the row after the last of each, ascending.
            size: views a batch.

        Yields:
            Filled batches.

        Raises:
            UnreadableImageError: a file is gone, changed or broken.
        """
        bounds = ((low, min(low + size, stop)) for start, stop in ranges for low in range(start, stop, size))
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[Batch] = deque()
            image: _OpenImage | None = None
            try:
                for start, stop in bounds:
                    batch, image = self._begin(pool, start, stop, image)
                    waiting.append(batch)
                    if len(waiting) > _AHEAD:
                        waiting[0].wait()
                        yield waiting.popleft()
                while waiting:
                    waiting[0].wait()
                    yield waiting.popleft()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _begin(
        self, pool: ThreadPoolExecutor, start: int, stop: int, image: _OpenImage | None
    ) -> tuple[Batch, _OpenImage | None]:
        """Have a batch filled; `image` is the last one of the batch before, and so is the one returned."""
        side = self.transform.size
        pixels = torch.empty((stop - start, side, side, 3), dtype=torch.uint8, pin_memory=self.pinned)
        batch = Batch(start, stop, pixels)
        for row in range(*self.views.images_of(start, stop)):
            low, high = max(start, int(self.views.offset[row])), min(stop, int(self.views.offset[row + 1]))
            if low < high:
                image = image if image is not None and image.row == row else _OpenImage(self.table, row)
                batch.parts.append(pool.submit(self._cut, image, batch, low, high))
        return batch, image

    def _cut(self, image: _OpenImage, batch: Batch, low: int, high: int) -> None:
        out = batch.pixels[low - batch.start : high - batch.start].numpy()
        self.transform(image.get(), self.views.box[low:high], out)
