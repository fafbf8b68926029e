"""Captioned images on their way into CLIP: batches of pixels and texts, and which pairs training keeps."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipdistill import distributed
from clipdistill.clip import preprocessing
from clipdistill.clip.tagging import Texts, tokenise
from clipdistill.clip.teacher import Teacher
from clipdistill.datasets.captions.table import CaptionTable
from clipdistill.training.data import ImageSource, Rows
from clipdistill.training.loop import Machine
from clipdistill.training.predict import autocast

_BATCH = 64


def texts(teacher: Teacher, table: CaptionTable, rows: Rows) -> Texts:
    """Captions and tags of some rows."""
    chosen = rows.tolist()
    return tokenise(teacher.tokenizer, [table.captions[row] for row in chosen], [table.tags[row] for row in chosen])


def batches_of(first: int, last: int, size: int | None = None) -> list[Rows]:
    """Rows first to last - 1 in batches, in order."""
    rows = np.arange(first, last)
    size = size or _BATCH
    return np.split(rows, range(size, len(rows), size)) if len(rows) else []


def normalised(pixels: Tensor, teacher: Teacher) -> Tensor:
    """Pixels uint8 or float in [0, 1], [B, 3, S, S], as CLIP takes them: float32, channels last in memory."""
    if pixels.dtype != torch.uint8:
        pixels = pixels * 255
    return preprocessing.normalise(pixels, teacher.preprocessing).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def kept(teacher: Teacher, table: CaptionTable, keep: float, machine: Machine) -> Rows:
    """Rows of the pairs whose image and caption are most alike, ascending.

    Args:
        teacher: CLIP, its model on the machine's device.
        table: N pairs.
        keep: share of the pairs that is kept, at least one.
        machine: where it is computed; each process looks at its share.

    Returns:
        int64, ascending; the earlier pair where two are equally alike.
    """
    if keep == 1:
        return np.arange(len(table))
    source = ImageSource(table, teacher.preprocessing.size, "none", machine.workers, machine.device.type == "cuda")
    batches = batches_of(*distributed.slice_of(len(table)), machine.batch_size)
    parts = [torch.empty(0)]
    for rows, pixels in zip(batches, source.batches(batches), strict=True):
        captions = teacher.tokenizer([table.captions[row] for row in rows.tolist()])
        with autocast(machine.device, machine.dtype):
            seen = teacher.model.encode_image(normalised(pixels.to(machine.device), teacher))
            read = teacher.model.encode_text(captions.to(machine.device))
        parts.append(F.cosine_similarity(seen.float(), read.float()).cpu())
    alike = distributed.gather_rows(torch.cat(parts), len(table)).numpy()
    count = max(1, round(keep * len(table)))
    return np.sort(np.argsort(-alike, kind="stable")[:count])
