"""Metrics of an open vocabulary: zero-shot (unseen labels alone) and generalised (seen and unseen together)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clipdistill.errors import ArtifactError
from clipdistill.evaluation.metrics import EmptyClass, classification_report, mean_average_precision
from clipdistill.evaluation.report import rounded

Scores = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int8]


def open_figures(scores: Scores, labels: Labels, top_k: Sequence[int], empty_class: EmptyClass) -> dict[str, Any]:
    """Figures of one list of labels.

    mAP is the mean over labels; precision, recall and F1 at k are micro: exactly k labels are predicted in every image,
    and all predictions are counted together (as BiAM and MKT do; Huynh and Elhamifar, CVPR 2020, section 4.1).

    Args:
        scores: float32 [M, L].
        labels: int8 [M, L]; -1 is left out.
        top_k: k's.
        empty_class: a label without positives is left out of the mean (skip) or counts 0 (zero).

    Returns:
        mAP, and P_k, R_k, F1_k for each k, percent, but for a k that is no less than L: all labels would be predicted,
        whatever the scores; the number of labels without a positive where there are any.
        Empty where nothing is known.
    """
    if not (labels >= 0).any():
        return {}
    mean, per_label = mean_average_precision(scores, labels, empty_class)
    figures: dict[str, Any] = {"mAP": rounded(mean)}
    for k in [k for k in top_k if k < labels.shape[1]]:
        at = classification_report(scores, labels, top_k=k)[f"top{k}"]
        figures |= {f"P_{k}": rounded(at["OP"]), f"R_{k}": rounded(at["OR"]), f"F1_{k}": rounded(at["OF1"])}
    empty = int(np.isnan(per_label).sum())
    return figures | ({"empty_labels": empty} if empty else {})


def compare(
    predictions: Mapping[str, Scores],
    labels: Labels,
    names: Sequence[str],
    seen: Sequence[bool],
    twins: Collection[str],
    top_k: Sequence[int],
    empty_class: EmptyClass,
) -> dict[str, Any]:
    """Figures of several models on one open vocabulary.

    Args:
        predictions: <row> float32 [M, L] and, where there are unseen labels, <row>_zsl float32 [M, U].
        labels: int8 [M, L].
        names: L.
        seen: L; U of them are not.
        twins: unseen labels with a singular or plural among the seen: left out of zsl_strict.
        top_k: k's.
        empty_class: as `open_figures`.

    Returns:
        By row gzsl and, with unseen labels, zsl, and zsl_strict where there are twins; the row `student` is not under
        its name but at the top.

    Raises:
        ArtifactError: scores and labels are not of one shape.
    """
    unseen = ~np.array(seen)
    alone = np.array([name not in twins for name, known in zip(names, seen, strict=True) if not known])
    result: dict[str, Any] = {}
    for row in [name for name in predictions if not name.endswith("_zsl")]:
        scores = predictions[row]
        _require_shape(row, scores, labels, len(names))
        figures: dict[str, Any] = {}
        if unseen.any():
            own, truth = predictions[f"{row}_zsl"], labels[:, unseen]
            _require_shape(f"{row}_zsl", own, truth, len(alone))
            figures["zsl"] = open_figures(own, truth, top_k, empty_class)
            if twins and alone.any():
                figures["zsl_strict"] = open_figures(own[:, alone], truth[:, alone], top_k, empty_class)
        figures["gzsl"] = open_figures(scores, labels, top_k, empty_class)
        result |= figures if row == "student" else {row: figures}
    return result


def _require_shape(row: str, scores: Scores, labels: Labels, columns: int) -> None:
    if scores.shape != labels.shape or scores.shape[1] != columns:
        raise ArtifactError(
            f"scores {list(scores.shape)} of {row} and ground truth {list(labels.shape)} do not belong together, "
            f"or not to {columns} labels: run `dvc repro`"
        )
