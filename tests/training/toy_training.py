"""A training run of seconds: drawn squares, three classes, a small network. Also a script, for real processes."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from clipdistill import distributed
from clipdistill.datasets.images import content_hash
from clipdistill.datasets.table import ImageTable
from clipdistill.params import CdulTrainParams, RecipeParams, StudentParams
from clipdistill.training import loop
from clipdistill.training.gradient_alignment import GradientAlignment
from clipdistill.training.train import Outputs, train_student

CLASSES = ["red", "green", "blue"]
STUDENT = StudentParams(backbone="shufflenet_v2_x0_5", image_size=32)
COMPUTE = distributed.Compute(device="cpu", threads=1, workers=1)


def recipe(**changes: object) -> RecipeParams:
    """Three epochs of batches of 8."""
    return RecipeParams(**{"epochs": 3, "batch_size": 8, "precision": "fp32"} | changes)


def make_table(folder: Path, images: int, seed: int = 0) -> tuple[ImageTable, np.ndarray]:
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
    table = ImageTable(folder, ids, [f"{i}.png" for i in ids], *sides, np.array(sizes), hashes, 10_000)
    return table, truth


def soft_labels(truth: np.ndarray, seed: int = 0) -> np.ndarray:
    """Unsure labels about the truth, float32 [N, C]."""
    noise = np.random.default_rng(seed).normal(0, 0.1, truth.shape)
    return np.clip(0.3 + 0.4 * truth + noise, 0.0, 1.0).astype(np.float32)


def _die_at(last: int) -> None:
    """Kill this process, as the machine would, in its `last`-th update."""
    update, count = loop.Trainer._step, 0

    def counted(self, *arguments):  # noqa: ANN001, ANN002, ANN202
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, *arguments)

    loop.Trainer._step = counted


def main(settings: dict) -> None:
    folder = Path(settings["folder"])
    table, truth = make_table(folder / f"images-{distributed.rank()}", settings["images"])
    if settings.get("die_at"):
        _die_at(settings["die_at"])
    train_student(
        table,
        soft_labels(truth),
        CLASSES,
        student=StudentParams(**STUDENT.model_dump() | settings.get("student", {})),
        recipe=recipe(**settings.get("recipe", {})),
        supervision=GradientAlignment(CdulTrainParams()),
        outputs=Outputs(folder / "model", folder / "labels"),
        compute=COMPUTE,
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
