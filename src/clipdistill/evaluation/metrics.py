"""Metrics of multi-label classification, in percent.

N images, C classes. Ground truth is 1 present, 0 absent, -1 unknown or left out; an entry of -1 counts
nowhere. Every function takes NumPy arrays or torch tensors and returns plain numbers and NumPy arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

EmptyClass = Literal["skip", "zero"]
Matrix = npt.NDArray[Any] | Tensor


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the scores of one split are worth.

    Attributes:
        mean_average_precision: percent; NaN where no class could be evaluated.
        average_precision: percent by class name; NaN for a class without positives.
        report: as `classification_report` gives it.
        images: N.
        labelled: images with at least one known label.
        classes: classes with at least one positive, the ones whose average precision is defined.
        empty_classes: names of the other classes.
    """

    mean_average_precision: float
    average_precision: dict[str, float]
    report: dict[str, Any]
    images: int
    labelled: int
    classes: int
    empty_classes: tuple[str, ...]

    def to_json(self, split: str = "val") -> dict[str, Any]:
        """Give the figures for a metrics file: few keys, since each becomes a column of `dvc metrics show`.

        Args:
            split: name of the evaluated split, the outermost key.

        Returns:
            mAP and the figures of the report, rounded to two decimals, with null for an undefined one; the
            number of classes without positives where there are any. Where no label is known: the number of
            images alone.
        """
        if not self.labelled:
            return {split: {"images": self.images, "labelled": 0}}
        figures = {"mAP": self.mean_average_precision, **self.report}
        empty = {"empty_classes": len(self.empty_classes)} if self.empty_classes else {}
        return {split: {**_rounded(figures), **empty}}


def mean_average_precision(
    scores: Matrix, labels: Matrix, empty_class: EmptyClass = "skip"
) -> tuple[float, npt.NDArray[np.float64]]:
    """Mean over the classes of the average precision: the area below the precision-recall curve.

    AP = sum over thresholds of (R_n - R_{n-1}) P_n, where equal scores share a threshold. This is the
    `average_precision_score` of scikit-learn, not the 11-point measure of VOC 2007.

    Args:
        scores: real [N, C], finite, of any range; only their order within a class counts.
        labels: int [N, C], 1, 0 or -1.
        empty_class: a class without positives is left out of the mean (skip), or counted 0 (zero).

    Returns:
        The mean, and the average precision of each class, float64 [C]; percent. A class without positives is
        NaN in the array whatever `empty_class`. The mean is NaN where no class is left, or no label is known
        at all.

    Raises:
        ValueError: the shapes differ, a score is NaN or infinite, a label is not 1, 0 or -1, or an unknown
            `empty_class`.

    Example:
        >>> scores, labels = np.array([[3.0], [2.0], [1.0]]), np.array([[1], [0], [1]])
        >>> round(mean_average_precision(scores, labels)[0], 2)
        83.33
    """
    if empty_class not in ("skip", "zero"):
        raise ValueError(f"empty_class must be skip or zero, but is {empty_class!r}")
    # Imported where it is needed: torchmetrics takes two seconds, and half of the stages compute no metric.
    from torchmetrics.functional.classification import multilabel_average_precision  # noqa: PLC0415

    values, truth = _checked(scores, labels)
    per_class = np.full(values.shape[1], np.nan)
    filled = (truth == 1).any(dim=0)
    if bool(filled.any()):
        precision = multilabel_average_precision(
            _ranks(values[:, filled]),
            truth[:, filled],
            num_labels=int(filled.sum()),
            average="none",
            ignore_index=-1,
            validate_args=False,
        )
        # Sums of float32 recall steps: a perfect ranking may come out a rounding above 1.
        per_class[filled.numpy()] = 100 * precision.reshape(-1).double().clamp(max=1).numpy()
    if not bool((truth >= 0).any()):
        return math.nan, per_class
    counted = np.nan_to_num(per_class) if empty_class == "zero" else per_class[filled.numpy()]
    return float(counted.mean()) if len(counted) else math.nan, per_class


def classification_report(scores: Matrix, labels: Matrix, threshold: float = 0.5, top_k: int = 3) -> dict[str, Any]:
    """Precision, recall and F1 of the classes predicted by a threshold, and of the k highest of each image.

    CP, CR: mean over all classes of precision and recall. OP, OR: precision and recall of all predictions
    together. CF1 = 2 CP CR / (CP + CR), from the two means and not a mean of F1, as the field's tables have
    it; OF1 likewise. A division by zero gives 0: a class that is never predicted has precision 0, one without
    positives recall 0.

    Args:
        scores: real [N, C], finite.
        labels: int [N, C], 1, 0 or -1.
        threshold: a class is predicted where its score is this high or higher.
        top_k: number of classes predicted in each image, exactly; of equal scores the class that comes first
            wins. All classes where there are fewer.

    Returns:
        CP, CR, CF1, OP, OR, OF1 in percent, and under "top<k>" the same six for the k highest.

    Raises:
        ValueError: as `mean_average_precision`, or `threshold` is not finite, or `top_k` is below 1.

    Example:
        >>> scores, labels = np.array([[0.9, 0.6], [0.2, 0.8]]), np.array([[1, 0], [0, 1]])
        >>> report = classification_report(scores, labels, top_k=1)
        >>> report["CP"], report["CR"], report["top1"]["CP"]
        (75.0, 100.0, 100.0)
    """
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be finite, but is {threshold}")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, but is {top_k}")
    values, truth = _checked(scores, labels)
    highest = torch.argsort(values, dim=1, descending=True, stable=True)[:, :top_k]
    in_top = torch.zeros_like(values, dtype=torch.bool).scatter_(1, highest, True)
    return {**_figures(values >= threshold, truth), f"top{top_k}": _figures(in_top, truth)}


def figures_at(scores: Matrix, labels: Matrix, thresholds: Sequence[float]) -> dict[str, float]:
    """Precision, recall and F1 of the classes predicted by a threshold of each class.

    Args:
        scores: real [N, C], finite.
        labels: int [N, C], 1, 0 or -1.
        thresholds: C; a class is predicted where its score is this high or higher.

    Returns:
        CP, CR, CF1, OP, OR, OF1 as `classification_report` defines them.

    Raises:
        ValueError: as `mean_average_precision`, or there are not C thresholds.
    """
    values, truth = _checked(scores, labels)
    if len(thresholds) != values.shape[1]:
        raise ValueError(f"there must be a threshold a class, {values.shape[1]}, but there are {len(thresholds)}")
    # In double precision: a threshold may lie between two neighbours of float32.
    return _figures(values.double() >= torch.tensor(thresholds, dtype=torch.float64), truth)


def evaluate(
    scores: Matrix,
    labels: Matrix,
    class_names: Sequence[str],
    threshold: float = 0.5,
    top_k: int = 3,
    empty_class: EmptyClass = "skip",
) -> Evaluation:
    """Compute every metric of one split.

    Args:
        scores: real [N, C], finite.
        labels: int [N, C], 1, 0 or -1.
        class_names: C different names, in column order.
        threshold: score from which a class counts as predicted.
        top_k: classes an image in the top-k figures.
        empty_class: a class without positives is left out of the mean average precision (skip) or counted 0
            (zero).

    Returns:
        The evaluation; where no label is known its figures are NaN or 0, and `to_json` leaves them out.

    Raises:
        ValueError: as the functions above, or `class_names` does not name every column once.
    """
    mean, per_class = mean_average_precision(scores, labels, empty_class)
    if len(set(class_names)) != len(per_class) or len(class_names) != len(per_class):
        raise ValueError(f"class_names must hold {len(per_class)} different names, but holds {list(class_names)}")
    known = _tensor(labels) >= 0
    return Evaluation(
        mean_average_precision=mean,
        average_precision=dict(zip(class_names, per_class.tolist(), strict=True)),
        report=classification_report(scores, labels, threshold, top_k),
        images=len(known),
        labelled=int(known.any(dim=1).sum()),
        classes=int(np.isfinite(per_class).sum()),
        empty_classes=tuple(np.asarray(class_names)[np.isnan(per_class)].tolist()),
    )


def _ranks(values: Tensor) -> Tensor:
    """Dense ranks within each column, scaled to [0, 1): same order, same ties.

    torchmetrics would send scores outside [0, 1] through a sigmoid, which ties those that it saturates.
    """
    ranks = [torch.unique(column, return_inverse=True)[1] for column in values.unbind(dim=1)]
    return torch.stack(ranks, dim=1).double() / len(values)


def _figures(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    from torchmetrics.functional.classification import multilabel_stat_scores  # noqa: PLC0415 - as above

    counts = multilabel_stat_scores(
        predicted.to(torch.int8),
        truth,
        num_labels=truth.shape[1],
        average="none",
        ignore_index=-1,
        validate_args=False,
    )
    tp, fp, _, fn, _ = counts.reshape(-1, 5).double().numpy().T
    class_precision = float(np.mean(_percent(tp, tp + fp)))
    class_recall = float(np.mean(_percent(tp, tp + fn)))
    precision = float(_percent(tp.sum(), (tp + fp).sum()))
    recall = float(_percent(tp.sum(), (tp + fn).sum()))
    return {
        "CP": class_precision,
        "CR": class_recall,
        "CF1": _harmonic_mean(class_precision, class_recall),
        "OP": precision,
        "OR": recall,
        "OF1": _harmonic_mean(precision, recall),
    }


def _percent(part: npt.ArrayLike, whole: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """100 part / whole; both are 0 where there is nothing to divide, and then the result is."""
    return 100 * np.asarray(part) / np.maximum(whole, 1)


def _harmonic_mean(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first + second else 0.0


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value) if isinstance(value, dict) else round(value, 2) if math.isfinite(value) else None
        for key, value in figures.items()
    }


def _checked(scores: Matrix, labels: Matrix) -> tuple[Tensor, Tensor]:
    """Scores and labels as tensors on the CPU, after checking what torchmetrics takes in silence."""
    values, truth = _tensor(scores), _tensor(labels)
    if values.ndim != 2 or values.shape != truth.shape or values.numel() == 0:
        raise ValueError(
            "scores and labels must be matrices [N, C] of one shape, with at least one entry, "
            f"but are {tuple(values.shape)} and {tuple(truth.shape)}"
        )
    _refuse(~torch.isfinite(values), values, "scores must be finite")
    _refuse((truth != 0) & (truth != 1) & (truth != -1), truth, "labels must be 1, 0 or -1")
    return values, truth.to(torch.int8)


def _refuse(unlawful: Tensor, matrix: Tensor, rule: str) -> None:
    if bool(unlawful.any()):
        row, column = unlawful.nonzero()[0].tolist()
        raise ValueError(f"{rule}, but row {row}, class {column} holds {matrix[row, column].item()}")


def _tensor(matrix: Matrix) -> Tensor:
    if isinstance(matrix, Tensor):
        return matrix.detach().cpu()
    # torch shares the memory, and wants it writable and in order: a copy only where it is not.
    return torch.from_numpy(np.require(matrix, requirements=["C", "W"]))
