"""CLIP's image tower at work: batches of pixels to unit-norm embeddings, several batches at a time.

Batches are worked on side by side, in lanes, and never split between threads: a lane is a thread that computes alone.
On a processor that is faster than one batch on all cores, whose threads wait for one another after every operation; and
since each batch sees the arithmetic of one thread, the bytes do not depend on the number of lanes, nor of processes. On
a GPU the lanes are streams: while one waits for its result to come back, the other's kernels run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from clipdistill import distributed
from clipdistill.clip.preprocessing import normalise
from clipdistill.clip.teacher import Teacher
from clipdistill.errors import TeacherError
from clipdistill.students.tokens import dense_embeddings

Embeddings = npt.NDArray[np.float16]

# Pixels of a batch, and views at most. On a processor: what a core's caches hold between two layers; at 224 pixels 16
# views, and batches of 64 took a fifth longer a view. On a GPU: what keeps it busy, at 224 pixels 256 views.
_PIXELS = {"cpu": 16 * 224 * 224, "cuda": 256 * 224 * 224}
_BATCH = {"cpu": 64, "cuda": 1024}
_GPU_LANES = 2


def default_batch(size: int, device: torch.device) -> int:
    """Views a forward pass where the machine's settings name no number.

    Args:
        size: S, side of the encoder's input, pixels.
        device: where it runs.
    """
    return max(1, min(_BATCH[device.type], _PIXELS[device.type] // size**2))


class ImageEncoder:
    """CLIP's image tower on a device, in a precision; weights are cast once.

    Args:
        teacher: CLIP; its image tower is moved and cast in place.
        precision: auto, fp32, bf16 or fp16.
        device: where it runs.
        compiled_batch: compile the tower (torch.compile) for batches of this size; smaller ones are padded. None: as
            it is.
        cells: whether a view gives an embedding for each cell of the encoder's map (`tokens.dense_embeddings`), in
            place of one.
    """

    def __init__(
        self,
        teacher: Teacher,
        precision: distributed.Precision,
        device: torch.device,
        compiled_batch: int | None = None,
        cells: bool = False,
    ) -> None:
        self._model = teacher.model
        self._dtype = distributed.resolve_precision(precision, device)
        self._model.visual.to(device=device, dtype=self._dtype, memory_format=torch.channels_last)
        if device.type == "cuda":
            # The lanes' streams do not wait for the one on which the weights were copied and cast.
            torch.cuda.synchronize(device)
        self._preprocessing = teacher.preprocessing
        self._device = device
        self._compiled_batch, self._cells = compiled_batch, cells
        self._embed = torch.compile(self._eager, dynamic=False) if compiled_batch else self._eager
        self._lane = threading.local()

    def __call__(self, pixels: torch.Tensor) -> Embeddings:
        """Embed a batch.

        Args:
            pixels: uint8 [B, S, S, 3], on the CPU; page-locked where the device is a GPU, if copies are to overlap.

        Returns:
            float16 [B, D], rows of unit norm; with `cells` [B * M, D], those of a view after one another.

        Raises:
            TeacherError: the encoder returned NaN or infinity, or the GPU has too little memory for the batch.
        """
        count = len(pixels)
        if self._compiled_batch and count < self._compiled_batch:
            pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, self._compiled_batch - count))
        try:
            with torch.inference_mode(), getattr(self._lane, "stream", None) or nullcontext():
                embedding = self._embed(pixels.to(self._device, non_blocking=True))[:count].half().cpu().numpy()
        except torch.OutOfMemoryError:
            raise TeacherError(
                f"the GPU has too little memory for {_GPU_LANES} batches of {len(pixels)} views side by side: set "
                f"batch_size in compute.yaml, or CLIPDISTILL_BATCH_SIZE={max(1, len(pixels) // 2)}"
            ) from None
        if not np.isfinite(embedding).all():
            cure = "use bf16, which has the range of fp32" if self._dtype is torch.float16 else "check the weights"
            name = str(self._dtype).removeprefix("torch.")
            raise TeacherError(f"clip.precision: the image encoder gives NaN or infinity in {name}: {cure}")
        return embedding.reshape(-1, embedding.shape[-1])

    def _eager(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [B, S, S, 3] to float32 [B, D] or [B, M, D] of unit norm, on the device."""
        # The permuted view of channels-last pixels is a channels-last tensor: nothing is copied.
        values = normalise(pixels.permute(0, 3, 1, 2), self._preprocessing).to(self._dtype)
        embedding = dense_embeddings(self._model.visual, values) if self._cells else self._model.encode_image(values)
        return F.normalize(embedding.float(), dim=-1)

    @contextmanager
    def lanes(self, count: int) -> Iterator[ThreadPoolExecutor]:
        """Threads that embed batches side by side: submit this encoder and the batch's pixels.

        Args:
            count: lanes on a processor, one a core; a GPU has two.
        """
        lanes = _GPU_LANES if self._device.type == "cuda" else count
        with ThreadPoolExecutor(lanes, initializer=self._enter_lane) as pool:
            if self._compiled_batch:
                # Before the others begin: compilation is not made for several threads at once.
                size = self._preprocessing.size
                pool.submit(self, torch.zeros(self._compiled_batch, size, size, 3, dtype=torch.uint8)).result()
            try:
                yield pool
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _enter_lane(self) -> None:
        """Make the calling thread a lane."""
        torch.set_num_threads(1)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            self._lane.stream = torch.cuda.stream(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]
