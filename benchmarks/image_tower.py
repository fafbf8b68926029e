"""What the benchmarks of CLIP's image tower share: random weights, bare forward passes, the likeness of two results."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import open_clip
import torch

from clipdistill import distributed
from clipdistill.clip import teacher
from clipdistill.clip.encoder import Embeddings, ImageEncoder
from clipdistill.errors import ParamsError

LOWEST_COSINE = 0.999
CPU = torch.device("cpu")


def native_precision() -> str:
    """The number format in which this processor computes fastest."""
    return "bf16" if distributed.resolve_precision("auto", CPU) is torch.bfloat16 else "fp32"


def random_teacher(name: str, seed: int) -> teacher.Teacher:
    """Build a CLIP with random weights.

    Raises:
        ParamsError: open_clip knows no such architecture.
    """
    teacher.register_architectures()
    if name not in open_clip.list_models():
        raise ParamsError(f"--model: open_clip knows no {name!r}; `clipdistill models` lists what it knows")
    torch.manual_seed(seed)
    model = teacher.create(name).requires_grad_(False)
    identity = {"model": name, "quick_gelu": False, "weights": teacher.weights_digest(model)}
    # No text is read here; this tokenizer comes with open_clip, where others are downloaded.
    return teacher.Teacher(model, open_clip.tokenize, teacher.preprocessing_of(model), 1.0, identity)


def cosines(first: Embeddings, second: Embeddings) -> npt.NDArray[np.float64]:
    """Cosines between rows of the same index, [V]."""
    a, b = (rows.astype(np.float64) for rows in (first, second))
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def forward(clip: teacher.Teacher, values: torch.Tensor) -> None:
    """One batch of normalised values [B, 3, S, S] through the image tower, and nothing else."""
    with torch.inference_mode():
        clip.model.encode_image(values)


def forward_in_lanes(encoder: ImageEncoder, clip: teacher.Teacher, batches: Iterable[torch.Tensor], lanes: int) -> None:
    """Batches through the image tower side by side, each on one core, as the embedder has them."""
    with encoder.lanes(lanes) as pool:
        for done in [pool.submit(forward, clip, values) for values in batches]:
            done.result()


def table_of_rates(rates: dict[str, list[float]]) -> str:
    """Views a second of each way: the median over the rounds, and their range."""
    rows = (
        f"{way:<16}{statistics.median(found):>10.1f}   {min(found):.1f} to {max(found):.1f}"
        for way, found in rates.items()
    )
    return "\n".join([f"{'way':<16}{'views/s':>10}   range over the rounds", *rows])
