"""A student's scores of whole splits: one clean pass, without augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipdistill import distributed
from clipdistill.datasets.table import ImageTable
from clipdistill.students import classifier, model_folder, preprocessing, student_yaml
from clipdistill.students.network import Network
from clipdistill.students.student_yaml import Head
from clipdistill.training.data import ImageSource

Scores = npt.NDArray[np.float32]

_BATCH = 64


def predict_scores(folder: Path, table: ImageTable, compute: distributed.Compute) -> Scores:
    """Score every image of a table with a trained student.

    Under torchrun each process takes its share of the rows, and all get the whole.

    Args:
        folder: of the student.
        table: N images.
        compute: device, threads, batch size.

    Returns:
        float32 [N, C], in [0, 1]; row i is image i of the table.

    Raises:
        ArtifactError: the folder holds no whole student.
        UnreadableImageError: a file is gone, changed or broken.
    """
    device = compute.torch_device()
    torch.set_num_threads(compute.thread_count())
    student, card = model_folder.load(folder)
    student.to(device=device).to(memory_format=torch.channels_last)
    pinned = device.type == "cuda"
    images = ImageSource(table, card.preprocessing.image_size, "none", compute.worker_count(), pinned)
    with distributed.process_group(device):
        result = predict(student, images, card.head, arithmetic_of(card), compute.batch_size)
    return result.numpy()


def arithmetic_of(card: student_yaml.Card) -> torch.dtype:
    """Number format in which the student was trained, and so is evaluated."""
    return torch.bfloat16 if card.provenance.get("arithmetic") == "bfloat16" else torch.float32


@torch.no_grad()
def predict(
    student: Network, images: ImageSource, head: Head, dtype: torch.dtype, batch_size: int | None = None
) -> Tensor:
    """Score images in evaluation mode; the student's mode afterwards is what it was.

    Args:
        student: on its device.
        images: N.
        head: how logits become scores.
        dtype: of the arithmetic.
        batch_size: images at a time; None: 64.

    Returns:
        float32 [N, C], on the CPU.
    """
    device = next(student.parameters()).device
    training = student.training
    student.eval()
    start, stop = distributed.slice_of(len(images))
    rows = np.arange(start, stop)
    batches = np.split(rows, range(batch_size or _BATCH, len(rows), batch_size or _BATCH)) if len(rows) else []
    parts = [torch.empty(0, student.columns)]
    for pixels in images.batches(batches):
        with autocast(device, dtype):
            logits, _ = student(preprocessing.normalise(pixels.to(device, non_blocking=True)))
        parts.append(classifier.scores(logits, head).cpu())
    student.train(training)
    return distributed.gather_rows(torch.cat(parts), len(images))


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision: matrix products in `dtype`, weights in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
