"""Thresholds of the classes: from which score on a class counts as present.

Against ground truth `best_f1` takes the cut with the highest F1. F1 of a class at a cut is 2 TP / (predicted +
positives); with soft labels in [0, 1] the counts become expected ones: a predicted image adds its label to TP, and the
positives are the labels' sum. For calibrated scores the best cut lies at half the F1 that it reaches, and so mostly
well below 0.5 (Lipton, Elkan and Narayanaswamy, ECML PKDD 2014, arXiv 1402.1892).

Without ground truth `without_truth` takes the same against the pseudo labels, but no cut below the one that parts the
scores best into two groups (`two_groups`; Otsu, IEEE Transactions on Systems, Man, and Cybernetics 9, 1979). Pseudo
labels of images that do not show a class are seldom 0: their sum promises more positives than there are, and the best
expected F1 then lets in too much, the more so the rarer the class is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

DEFAULT = 0.5
"""Threshold of a class about which the labels, or the scores, say nothing."""

F1 = "expected F1"
"""Name of the rule of `best_f1`, for what is written about thresholds."""

F1_AND_GROUPS = "expected F1, but never below the cut that parts the scores best into two groups"
"""Name of the rule of `without_truth`."""

Floats = npt.NDArray[np.float64]


def best_f1(scores: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Floats:
    """Choose for each class the threshold whose predictions have the highest expected F1.

    A threshold lies midway between the lowest score that it lets in and the next one; of equal F1 the higher threshold
    is taken. `DEFAULT` is kept for a class

    - whose F1 is 0 at every cut: no label is positive, or every score is 0;
    - whose best cut lets in every image although its labels say that most images do not show it: that is what F1 asks
      of scores that tell nothing (as the same paper shows), and the class would be predicted everywhere.

    Args:
        scores: [N, C], in [0, 1].
        labels: [N, C], in [0, 1]; negative where unknown, and then the image does not count for that class.

    Returns:
        Thresholds in [0, 1], float64 [C].

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> best_f1(np.array([[0.4], [0.3], [0.1]]), np.array([[1], [1], [0]])).round(3).tolist()
        [0.2]
    """
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores and labels must be [N, C] alike, but are {scores.shape} and {labels.shape}")
    if not len(scores):
        return np.full(scores.shape[1], DEFAULT)
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=0).astype(np.float64)
    own = np.take_along_axis(labels, order, axis=0)
    known = own >= 0
    weight = own.astype(np.float64) * known
    predicted, found = known.cumsum(axis=0), weight.cumsum(axis=0)
    positives, images = found[-1], predicted[-1]
    f1 = 2 * found / np.maximum(predicted + positives, 1)
    following = np.vstack([ranked[1:], np.zeros((1, ranked.shape[1]))])
    # Equal scores are let in together.
    f1[ranked == following] = -1.0
    best = f1.argmax(axis=0)
    columns = np.arange(scores.shape[1])
    telling = (predicted[best, columns] < images) | (2 * positives >= images)
    midway = (ranked[best, columns] + following[best, columns]) / 2
    return np.where((f1[best, columns] > 0) & telling, midway, DEFAULT)


def without_truth(scores: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Floats:
    """Choose for each class a threshold from pseudo labels: the larger of `best_f1` and `two_groups`.

    Args:
        scores: [N, C], in [0, 1], of the images that the student learned from.
        labels: [N, C], in [0, 1]: what it learned; negative where unknown.

    Returns:
        Thresholds in [0, 1], float64 [C].

    Raises:
        ValueError: the shapes differ.
    """
    return np.maximum(best_f1(scores, labels), two_groups(scores))


def two_groups(scores: npt.NDArray[Any]) -> Floats:
    """Cut each class's scores where the variance between the two groups is highest (Otsu's rule, 1979).

    With n0 scores of mean m0 below the cut and n1 of mean m1 above it, that variance is n0 n1 (m0 - m1)^2 / N^2. The
    threshold lies midway between the two scores that the cut parts; of equal variance the lower cut is taken.

    Args:
        scores: [N, C], in [0, 1].

    Returns:
        Float64 [C]; 0 for a class whose scores are all equal.

    Example:
        >>> two_groups(np.array([[0.1], [0.2], [0.8], [0.9]])).tolist()
        [0.5]
    """
    if len(scores) < 2:
        return np.zeros(scores.shape[1])
    ordered = np.sort(scores, axis=0).astype(np.float64)
    images, below = len(ordered), np.arange(1, len(ordered))[:, None]
    sums = ordered.cumsum(axis=0)
    gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / (images - below)
    between = below * (images - below) * gap**2
    lower, upper = ordered[:-1], ordered[1:]
    # Equal scores stay together.
    between[lower == upper] = 0.0
    best, columns = between.argmax(axis=0), np.arange(scores.shape[1])
    midway = (lower[best, columns] + upper[best, columns]) / 2
    return np.where(between[best, columns] > 0, midway, 0.0)
