"""A training run of less than a second: drawn squares, three classes, a small network. Also a script for processes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from clipdistill import distributed
from clipdistill.datasets.images import content_hash
from clipdistill.datasets.table import ImageTable
from clipdistill.params import CdulTrainParams, RecipeParams, StudentParams
from clipdistill.training import loop
from clipdistill.training.gradient_alignment import GradientAlignment
from clipdistill.training.loop import Truth
from clipdistill.training.supervision import Supervision
from clipdistill.training.train import Outputs, train_student

CLASSES = ["red", "green", "blue"]
STUDENT = StudentParams(output_stride=32, backbone="shufflenet_v2_x0_5", image_size=32)
COMPUTE = distributed.Compute(device="cpu", threads=1, workers=1)

Presence = npt.NDArray[np.int8]
SoftLabels = npt.NDArray[np.float32]
Toy = tuple[ImageTable, Presence]


def compute_here_on_one_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what follows find its files below a folder, and this machine's settings be those of COMPUTE."""
    monkeypatch.chdir(folder)
    for name in ("DEVICE", "THREADS", "WORKERS"):
        monkeypatch.setenv(f"CLIPDISTILL_{name}", "cpu" if name == "DEVICE" else "1")


def make_table(folder: Path, images: int, seed: int = 0) -> Toy:
    """Images of 40 x 30 pixels with a square in the colour of each class present, and the truth int8 [N, 3]."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    truth = (generator.random((images, len(CLASSES))) < 0.5).astype(np.int8)
    hashes, sizes = [], []
    for row, present in enumerate(truth):
        pixels = generator.integers(0, 60, (30, 40, 3), dtype=np.uint8)
        for column in np.flatnonzero(present):
            top, left = generator.integers(0, (18, 28))
            pixels[top : top + 12, left : left + 12, column] += 150
        path = folder / f"{row:03}.png"
        Image.fromarray(pixels).save(path)
        hashes.append(content_hash(path.read_bytes()))
        sizes.append(path.stat().st_size)
    ids = [f"{row:03}" for row in range(images)]
    sides = [np.full(images, side, dtype=np.int32) for side in (40, 30)]
    return ImageTable(folder, ids, [f"{i}.png" for i in ids], *sides, np.array(sizes), hashes, 10_000), truth


def soft_labels(truth: Presence, seed: int = 0) -> SoftLabels:
    """Unsure labels about the truth, float32 [N, C]."""
    noise = np.random.default_rng(seed).normal(0, 0.1, truth.shape)
    return np.clip(0.3 + 0.4 * truth + noise, 0.0, 1.0).astype(np.float32)


def train(
    toy: Toy,
    out: Path,
    supervision: Supervision | None = None,
    *,
    truth: Truth | None = None,
    labels: SoftLabels | None = None,
    student: StudentParams = STUDENT,
    **recipe: object,
) -> Outputs:
    """Train for three epochs of batches of 8, or as `recipe` has it; by default with gradient alignment."""
    outputs = Outputs(out / "model", out / "labels", out / "curves")
    train_student(
        toy[0],
        soft_labels(toy[1]) if labels is None else labels,
        CLASSES,
        student=student,
        recipe=RecipeParams(**{"epochs": 3, "batch_size": 8, "precision": "fp32"} | recipe),
        supervision=supervision or GradientAlignment(CdulTrainParams(warmup=0)),
        outputs=outputs,
        truth=truth,
        compute=COMPUTE,
    )
    return outputs


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def before_update(action: Callable[[int], None], patch: pytest.MonkeyPatch) -> None:
    """Call `action` with the number of each update, from 1, before it is done."""
    update, count = loop.Trainer._step, 0

    def watched(self: loop.Trainer, *arguments: object) -> torch.Tensor:
        nonlocal count
        count += 1
        action(count)
        return update(self, *arguments)

    patch.setattr(loop.Trainer, "_step", watched)


def main(settings: dict[str, Any]) -> None:
    """Train in this process, and die in update `die_at`, where it is given."""

    def die(update: int) -> None:
        if update == settings.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    folder = Path(settings["folder"])
    toy = make_table(folder / f"images-{distributed.rank()}", settings["images"])
    with pytest.MonkeyPatch.context() as patch:
        before_update(die, patch)
        student = StudentParams(**STUDENT.model_dump() | settings.get("student", {}))
        train(toy, folder, student=student, **settings.get("recipe", {}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
