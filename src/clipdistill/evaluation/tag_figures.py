"""Figures of tags: which words of a caption were chosen, and which of them the image shows.

Counted over all pairs of an image and a word of its caption (micro), as TTD's tables are: their precision, recall and
accuracy together imply one share of positives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from clipdistill.evaluation.segmentation import THRESHOLDS

Flags = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float32]


def tag_figures(chosen: Flags, truth: Flags, dropped: int = 0) -> dict[str, float]:
    """Give precision, recall, F1 and accuracy of chosen words.

    Args:
        chosen: bool [W], of every candidate of every caption.
        truth: bool [W].
        dropped: further words of the captions, function words, which are never candidates: neither chosen nor true.

    Returns:
        P, R, F1, Acc in percent, two decimals; P is 0 where nothing was chosen.

    Example:
        >>> tag_figures(np.array([True, True, False]), np.array([True, False, False]), dropped=1)
        {'P': 50.0, 'R': 100.0, 'F1': 66.67, 'Acc': 75.0}
    """
    # Imported where they are needed: torchmetrics takes two seconds.
    from torchmetrics.functional.classification import (  # noqa: PLC0415
        binary_accuracy,
        binary_f1_score,
        binary_precision,
        binary_recall,
    )

    none = np.zeros(dropped, dtype=np.bool_)
    predicted, wanted = (torch.from_numpy(np.concatenate([part, none]).astype(np.int64)) for part in (chosen, truth))
    rules = {"P": binary_precision, "R": binary_recall, "F1": binary_f1_score, "Acc": binary_accuracy}
    return {name: round(100 * float(rule(predicted, wanted)), 2) for name, rule in rules.items()}


def sweep(scores: Mapping[str, Scores], truth: Flags, dropped: int) -> list[dict[str, float | str]]:
    """Give the figures at every threshold: a row for each way to score and each of `THRESHOLDS`."""
    return [
        {"scoring": name, "threshold": threshold, **tag_figures(values >= threshold, truth, dropped)}
        for name, values in scores.items()
        for threshold in THRESHOLDS
    ]


def truth_of(tags: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> Flags:
    """Which candidates are true, of all captions after one another: bool [W]."""
    return np.array(
        [word in set(shown) for words, shown in zip(tags, truth, strict=True) for word in words], dtype=np.bool_
    )
