"""Metrics files: the figures of a method as JSON, the average precision of each class as a plot file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipdistill import store
from clipdistill.evaluation.metrics import evaluate
from clipdistill.params import EvaluateParams


def write(
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int8],
    class_names: Sequence[str],
    params: EvaluateParams,
    metrics: Path,
    per_class: Path,
) -> None:
    """Evaluate a method and write both files; without any known label the figures are left out.

    Args:
        scores: float32 [N, C].
        labels: int8 [N, C]; -1 is left out.
        class_names: C names.
        params: section `evaluate`.
        metrics: JSON file.
        per_class: CSV file with the columns class and AP (percent); classes without positives are not in it.
    """
    result = evaluate(scores, labels, class_names, params.threshold, params.top_k, empty_class=params.empty_class)
    store.write_json(metrics, result.to_json())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "AP"])
    for name, precision in result.average_precision.items():
        if not math.isnan(precision):
            writer.writerow([name, f"{precision:.2f}"])
    store.write_atomically(per_class, text.getvalue().encode())
