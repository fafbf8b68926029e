"""Metrics files: the figures of a method as JSON, the average precision of each class as a plot file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipdistill import store
from clipdistill.errors import ArtifactError
from clipdistill.evaluation.csv_file import write_csv
from clipdistill.evaluation.metrics import EmptyClass, evaluate, figures_at, mean_average_precision
from clipdistill.evaluation.thresholds import best_f1
from clipdistill.params import EvaluateParams


@dataclass(frozen=True, slots=True)
class Epochs:
    """Scores after each epoch of a training whose student a stopping rule chose.

    Attributes:
        scores: float32 [E, N, C].
        chosen: the epoch, from 1.
    """

    scores: npt.NDArray[np.float32]
    chosen: int

    def figures(self, labels: npt.NDArray[np.int8], empty_class: EmptyClass) -> dict[str, Any]:
        """The chosen epoch beside the last and the best one; the best is found with the labels, and only to compare."""
        if not len(self.scores):
            return {"epoch": self.chosen}
        means = [mean_average_precision(scores, labels, empty_class)[0] for scores in self.scores]
        best = int(np.argmax(np.nan_to_num(means)))
        return {
            "epoch": self.chosen,
            "last_mAP": rounded(means[-1]),
            "last_epoch": len(means),
            "oracle_mAP": rounded(means[best]),
            "oracle_epoch": best + 1,
            "oracle_uses_labels": True,
        }


def threshold_figures(
    scores: npt.NDArray[np.float32], labels: npt.NDArray[np.int8], own: Sequence[float] | None
) -> dict[str, Any]:
    """F1 at thresholds of each class, beside the one threshold of all in the other figures.

    Args:
        scores: float32 [N, C].
        labels: int8 [N, C]; -1 is left out.
        own: the model's C thresholds; None where it has none.

    Returns:
        CF1 and OF1 in percent, under `own`, where there are any, and under `oracle`: with the thresholds that have the
        best F1 of each class on these very labels, about the most that any choice of thresholds can give.
    """
    chosen = {"own": own, "oracle": best_f1(scores, labels).tolist()}
    figures = {name: figures_at(scores, labels, values) for name, values in chosen.items() if values is not None}
    return {name: {key: rounded(found[key]) for key in ("CF1", "OF1")} for name, found in figures.items()}


def rounded(value: float) -> float | None:
    """A figure as metrics files have it: two decimals; None for one that is not known."""
    return round(value, 2) if math.isfinite(value) else None


def write(
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int8],
    class_names: Sequence[str],
    params: EvaluateParams,
    metrics: Path,
    per_class: Path,
    epochs: Epochs | None = None,
    own: Sequence[float] | None = None,
) -> None:
    """Evaluate a method and write both files; without any known label the figures are left out.

    Args:
        scores: float32 [N, C].
        labels: int8 [N, C]; -1 is left out.
        class_names: C names.
        params: section `evaluate`.
        metrics: JSON file.
        per_class: CSV file with the columns class and AP (percent); classes without positives are not in it.
        epochs: of a training with a stopping rule.
        own: the model's own thresholds, C; None where it has none.

    Raises:
        ArtifactError: scores, labels and classes are not of one shape, so not of one run.
    """
    if not scores.shape == labels.shape == (len(labels), len(class_names)):
        raise ArtifactError(
            f"{metrics}: scores {list(scores.shape)} and ground truth {list(labels.shape)} do not belong together, or "
            f"not to {len(class_names)} classes: run `dvc repro`"
        )
    result = evaluate(scores, labels, class_names, params.threshold, params.top_k, empty_class=params.empty_class)
    content = result.to_json()
    if result.labelled:
        content["val"] |= threshold_figures(scores, labels, own)
    if epochs is not None:
        content["val"] |= epochs.figures(labels, params.empty_class)
    store.write_json(metrics, content)
    known = [(name, value) for name, value in result.average_precision.items() if not math.isnan(value)]
    write_csv(per_class, ["class", "AP"], [[name, f"{value:.2f}"] for name, value in known])
