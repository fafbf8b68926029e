"""The embedder: any view table to an array of unit-norm embeddings, by any number of processes.

The unit of work is a shard of the output. A process takes whole shards, no two the same one, and no batch crosses a
shard's border: so the bytes do not depend on the number of processes, on their order, or on how often a run was
killed (a batch of another composition rounds differently in its last bit).
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from clipdistill import distributed, store
from clipdistill.clip.preprocessing import Pixels, ViewTransform, normalise
from clipdistill.clip.teacher import Teacher
from clipdistill.clip.views import ViewTable
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import TeacherError
from clipdistill.work import Work, code_digest

logger = logging.getLogger(__name__)

Embeddings = npt.NDArray[np.float16]
Progress = Callable[[int], None]

# What stands between an image file and its embedding.
_CODE = ["store.py", "work.py", "clip/embed.py", "clip/preprocessing.py", "clip/views.py", "datasets/images.py"]

# A shard is a file. DVC's cost is per file and a killed run repeats at most the shards in flight: so at most 64 files,
# none below 1,024 views or above 262,144 (512 MB at width 1,024).
_MAX_FILES, _MIN_ROWS, _MAX_ROWS, _ROW_UNIT = 64, 1_024, 262_144, 64


def shard_rows(views: ViewTable) -> int:
    """Rows of a shard: a multiple of 64 whole images where all have the same number of views."""
    rows = min(max(_MIN_ROWS, -(-len(views) // _MAX_FILES)), _MAX_ROWS)
    unit = _ROW_UNIT * (views.uniform_count or 1)
    return -(-rows // unit) * unit


class ImageEncoder:
    """CLIP's image tower on a device, in a precision; weights are cast once.

    Args:
        teacher: CLIP.
        precision: fp32, bf16 or fp16.
        device: where it runs.
    """

    def __init__(self, teacher: Teacher, precision: distributed.Precision, device: torch.device) -> None:
        self._model = teacher.model
        self._dtype = distributed.resolve_precision(precision, device)
        self._model.visual.to(device=device, dtype=self._dtype, memory_format=torch.channels_last)
        self._preprocessing = teacher.preprocessing
        self._device, self._precision = device, precision

    def __call__(self, pixels: torch.Tensor) -> Embeddings:
        """Embed a batch.

        Args:
            pixels: uint8 [B, 3, S, S].

        Returns:
            float16 [B, D], rows of unit norm.

        Raises:
            TeacherError: the encoder returned NaN or infinity.
        """
        with torch.inference_mode():
            values = normalise(pixels.to(self._device, non_blocking=True), self._preprocessing)
            values = values.to(self._dtype, memory_format=torch.channels_last)
            embedding = F.normalize(self._model.encode_image(values).float(), dim=-1)
        if not bool(torch.isfinite(embedding).all()):
            cure = "use bf16, which has the range of fp32" if self._precision == "fp16" else "check the weights"
            raise TeacherError(f"clip.precision: the image encoder gives NaN or infinity in {self._precision}: {cure}")
        return embedding.cpu().numpy().astype(np.float16)


@dataclass(frozen=True, slots=True)
class ViewSource:
    """Pixels of views, decoded once an image.

    Attributes:
        table: N images.
        views: V views of them.
        transform: box to pixels.
        threads: decoding threads.
    """

    table: ImageTable
    views: ViewTable
    transform: ViewTransform
    threads: int

    def batches(self, start: int, stop: int, size: int) -> Iterator[torch.Tensor]:
        """Views [start, stop) in order, as full batches and one last rest.

        Yields:
            uint8 [size or fewer, 3, S, S].
        """
        waiting: list[Pixels] = []
        count = 0
        for pixels in self._images(start, stop):
            waiting.append(pixels)
            count += len(pixels)
            while count >= size:
                joined = np.concatenate(waiting)
                yield torch.from_numpy(joined[:size])
                waiting, count = [joined[size:]], count - size
        if count:
            yield torch.from_numpy(np.concatenate(waiting))

    def _images(self, start: int, stop: int) -> Iterator[Pixels]:
        """Views of one image after the other; a few images ahead are in the making."""
        first, last = self.views.images_of(start, stop)
        with ThreadPoolExecutor(self.threads) as pool:
            ahead: deque[Future[Pixels]] = deque()
            try:
                for image in range(first, last):
                    ahead.append(pool.submit(self._cut, image, start, stop))
                    if len(ahead) > 4 * self.threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _cut(self, image: int, start: int, stop: int) -> Pixels:
        low = max(start, int(self.views.offset[image]))
        high = min(stop, int(self.views.offset[image + 1]))
        if low == high:
            return np.empty((0, 3, self.transform.size, self.transform.size), dtype=np.uint8)
        return self.transform(self.table.open(image), self.views.box[low:high])


def prepare(
    stage: str,
    teacher: Teacher,
    table: ImageTable,
    views: ViewTable,
    provenance: dict[str, Any],
    arithmetic: Sequence[Any] = (),
) -> Work:
    """Open the work folder of an embedding array, making it if there is none for these inputs.

    Args:
        stage: stage, target and split, e.g. "embed@global/train".
        teacher: CLIP.
        table: images.
        views: their views.
        provenance: precision and view parameters.
        arithmetic: what the last bit of a sum may depend on (device, batch, threads): not part of the artifact's
            provenance, but a killed run is not finished with another.

    Returns:
        Work with an array `embedding` float16 [V, D] to fill, and `box`, `offset` filled.
    """
    full = {**provenance, **teacher.identity, "table": table.fingerprint, "boxes": _digest(views)}
    specs = {"embedding": store.ArraySpec((len(views), _width(teacher)), "float16", shard_rows(views))}
    identity = {**full, "code": code_digest(_CODE), "rows": shard_rows(views), "arithmetic": list(arithmetic)}
    return Work(stage, identity, specs, {"box": views.box, "offset": views.offset}, full)


def _digest(views: ViewTable) -> str:
    """What tells two view tables apart: boxes may come from a network, and not from parameters alone."""
    return hashlib.sha256(views.box.tobytes() + views.offset.tobytes()).hexdigest()


def _width(teacher: Teacher) -> int:
    """Embedding width D, which not every architecture states."""
    size = teacher.preprocessing.size
    with torch.inference_mode():
        return int(teacher.model.encode_image(torch.zeros(1, 3, size, size)).shape[1])


def fill(
    work: Work,
    shards: list[int],
    source: ViewSource,
    encoder: ImageEncoder,
    batch_size: int,
    progress: Progress,
) -> None:
    """Embed the views of the given shards and write each as soon as it is whole.

    Args:
        work: from `prepare`.
        shards: indices of unfinished shards that are this process's own.
        source: pixels of the same views.
        encoder: CLIP's image tower.
        batch_size: views a forward pass.
        progress: called with the number of views after every batch.
    """
    for shard in shards:
        start, stop = work.specs["embedding"].range_of(shard)
        parts: list[Embeddings] = []
        for pixels in source.batches(start, stop, batch_size):
            parts.append(encoder(pixels))
            progress(len(pixels))
        work.write(shard, {"embedding": np.concatenate(parts)})
