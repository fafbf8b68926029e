"""The precision-recall curve of a method over all classes at once, thin enough to be a plot file.

N images, C classes, K points.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipdistill.evaluation.csv_file import write_csv

POINTS = 100
"""Points of a curve at most."""

Curve = npt.NDArray[np.float64]


def micro_curve(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.int8], points: int = POINTS) -> Curve:
    """Precision and recall at falling thresholds, all entries of the matrix in one ranking (micro-averaged).

    A threshold takes every entry that has at least its score, so that equal scores fall together. Of more thresholds
    than points, those are kept whose recalls lie evenly, the first and the last among them.

    Args:
        scores: float [N, C], finite.
        labels: int [N, C]; 1, 0, or -1 for an entry that counts nowhere.
        points: rows at most, at least 2.

    Returns:
        float64 [K, 3]: recall in percent, rising, precision in percent, threshold; K = 0 where nothing is positive.
    """
    known = labels >= 0
    kept, positive = scores[known], labels[known] == 1
    if not positive.any():
        return np.empty((0, 3))
    order = np.argsort(-kept, kind="stable")
    ranked, found = kept[order], np.cumsum(positive[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    recall, precision = found[last] / found[-1], found[last] / (last + 1)
    # Beyond full recall only the precision falls: the curve ends where the last positive is found.
    end = int(np.searchsorted(recall, 1.0))
    wanted = np.linspace(recall[0], 1.0, points)
    rows = np.unique(np.clip(np.searchsorted(recall[: end + 1], wanted), 0, end))
    return np.stack([100 * recall[rows], 100 * precision[rows], ranked[last[rows]]], axis=1)


def write(path: Path, curve: Curve) -> None:
    """Write a curve as CSV with the columns recall, precision (percent) and threshold; a header alone for none."""
    rows = [[f"{recall:.2f}", f"{precision:.2f}", f"{threshold:.6g}"] for recall, precision, threshold in curve]
    write_csv(path, ["recall", "precision", "threshold"], rows)
