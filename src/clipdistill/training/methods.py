"""The trained methods of the pipeline: which labels each learns from, and how it refines them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipdistill import distributed, store
from clipdistill.datasets.table import ImageTable, Labels, read_labels
from clipdistill.params import MAX_ROUNDS, Params
from clipdistill.stage import Paths
from clipdistill.students import untrained
from clipdistill.training import pseudo_label
from clipdistill.training.ccd_labels import CcdLabels
from clipdistill.training.gradient_alignment import GradientAlignment
from clipdistill.training.loop import Truth
from clipdistill.training.regime import Regime
from clipdistill.training.supervision import FixedLabels, Supervision
from clipdistill.training.train import EPOCHS, Outputs, SoftLabels, launch, stored_labels, train_by_params
from clipdistill.training.weighted_labels import WeightedLabels


def train_method(method: str, params: Params, command: list[str]) -> None:
    """Train one method's student, in as many processes as this machine is set to.

    Args:
        method: "cdul" and "dense" (first labels, refined by gradient alignment), "ccd" (updated labels, with the
            stopping rule), "global" (labels of the whole image alone, the lower bound) or "supervised" (ground truth,
            the upper bound).
        params: all parameters.
        command: the stage's script and its arguments, started once a process where there are several.
    """
    compute = distributed.Compute.load()
    paths = Paths(params.dataset.name)
    table = ImageTable.load(paths.table("train"))
    truth = _truth(paths, table)
    if method == "supervised" and (truth.train is None or not (truth.train == 1).any()):
        _write_untrained(paths, method, table)
        return
    if not launch(command, params.train.recipe.batch_size, compute):
        labels, supervision = _taught(method, params, paths, table)
        # CCD's student has been trained before: it has its own number of epochs, and its turn is after every round's.
        again = {"epochs": params.ccd.train.epochs, "turn": MAX_ROUNDS + 1} if method == "ccd" else {}
        train_by_params(
            params,
            table,
            labels,
            supervision=supervision,
            outputs=_outputs(method, paths),
            truth=truth,
            regime=_regime(method, params, paths),
            stage=f"train/{method}",
            compute=compute,
            **again,
        )
    if distributed.is_leader():
        _write_report(method, paths, truth.train)


def _taught(method: str, params: Params, paths: Paths, table: ImageTable) -> tuple[SoftLabels, Supervision]:
    """First labels, [N, C] in [0, 1], in the ground truth -1 where it is unknown; and what becomes of them."""
    if method == "supervised":
        return read_labels(paths.ground_truth("train"), table).astype(np.float32), FixedLabels()
    if method == "ccd":
        updated = CcdLabels.read(paths.ccd_labels(MAX_ROUNDS), table)
        return updated.labels.numpy(), WeightedLabels(updated.weight)
    labels = stored_labels(method, paths, table).read("labels")
    return labels, FixedLabels() if method == "global" else GradientAlignment(params.train.cdul)


def _regime(method: str, params: Params, paths: Paths) -> Regime:
    if method != "ccd":
        return Regime()
    ccd = params.ccd.train
    return Regime(paths.ccd_student(MAX_ROUNDS), ccd.boost, ccd.consistency, ccd.jitter, ccd.positive_at)


def _outputs(method: str, paths: Paths) -> Outputs:
    student = paths.student(method)
    epochs = student / EPOCHS if method == "ccd" else None
    return Outputs(student, paths.refined(method), paths.curves(method), epochs)


def _truth(paths: Paths, table: ImageTable) -> Truth:
    """Ground truth for the curves."""
    val = ImageTable.load(paths.table("val"))
    train_labels, val_labels = (
        labels if (labels >= 0).any() else None
        for labels in (read_labels(paths.ground_truth("train"), table), read_labels(paths.ground_truth("val"), val))
    )
    return Truth(train=train_labels, val_table=None if val_labels is None else val, val=val_labels)


def _write_report(method: str, paths: Paths, truth: Labels | None) -> None:
    """Quality of the labels before and after training, for people; nothing reads it back."""
    group = store.read_group(paths.refined(method))
    last = group.shape("labels")[0] - 1
    report: dict[str, Any] = {}
    if truth is not None:
        states = {"initial": 0, "refined": last} if last else {"initial": 0}
        labels = {name: torch.from_numpy(group.read("labels", row, row + 1)[0]) for name, row in states.items()}
        report = pseudo_label.label_quality(labels, truth, "skip")
    store.write_json(Path(f"metrics/train/{method}.json"), {"train": report})


def _write_untrained(paths: Paths, method: str, table: ImageTable) -> None:
    untrained.mark(paths.student(method), "the training images have no ground truth, so there is no supervised student")
    nothing = np.empty((0, len(table), 0), dtype=np.float32)
    store.write_group(paths.refined(method), {"labels": nothing}, {"table": table.fingerprint})
    store.write_json(paths.curves(method) / "metrics.json", {})
    store.write_json(Path(f"metrics/train/{method}.json"), {"train": {}})
