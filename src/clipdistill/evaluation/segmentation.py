"""Figures of segmentation: pixels by true and predicted class, the choice of the background, overlap of score maps.

H x W pixels of an image, L labels, the background among them where there is one (then it is label 0), T thresholds.
Masks hold labels; 255 marks pixels that count nowhere. Counts are added image by image, and images without any class
count like all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipdistill.methods import ttd

IGNORE = 255
"""Label of pixels that count nowhere."""

THRESHOLDS: tuple[float, ...] = tuple(step / 20 for step in range(1, 20))
"""0.05 to 0.95: what a background's score, or the threshold of a map or of a word's score, is chosen from."""


class Confusion:
    """Pixels of a set by true and predicted label.

    Args:
        labels: L, at least 2.
    """

    def __init__(self, labels: int) -> None:
        # Imported where it is needed: torchmetrics takes two seconds.
        from torchmetrics.classification import MulticlassConfusionMatrix  # noqa: PLC0415

        self._labels = labels
        self._metric = MulticlassConfusionMatrix(labels, ignore_index=IGNORE, validate_args=False)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Count the pixels of an image.

        Args:
            predicted: integers [H, W], labels.
            truth: integers [H, W], labels or `IGNORE`.

        Raises:
            ValueError: the shapes differ, or a value is no label.
        """
        if predicted.shape != truth.shape:
            raise ValueError(f"shapes differ: predicted {tuple(predicted.shape)}, truth {tuple(truth.shape)}")
        # As int64: the metric multiplies labels, which bytes have no room for.
        predicted, truth = predicted.cpu().long(), truth.cpu().long()
        for name, values in (("predicted", predicted), ("truth", truth[truth != IGNORE])):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < self._labels:
                raise ValueError(f"{name} must hold labels from 0 to {self._labels - 1}, and truth {IGNORE}")
        self._metric.update(predicted, truth)

    @property
    def counts(self) -> Tensor:
        """int64 [L, L]: pixels by true label (rows) and predicted label (columns)."""
        found: Tensor = self._metric.confmat
        return found


def with_background(best: Tensor, index: Tensor, background: float | None) -> Tensor:
    """Predict a label for each pixel: the class of the highest score, or the background where that is no higher.

    This is the arg-max over the classes and a constant channel before them.

    Args:
        best: float [H, W], the highest score of a class.
        index: integers [H, W], which class that is.
        background: score of the background; None: there is none.

    Returns:
        int64 [H, W], labels.
    """
    if background is None:
        return index.long()
    return torch.where(best > background, index.long() + 1, 0)


class BackgroundSweep:
    """Confusions of a set for each score that the background may have, counted in one pass.

    Args:
        labels: L, the background among them.
        thresholds: T scores.
    """

    def __init__(self, labels: int, thresholds: Sequence[float] = THRESHOLDS) -> None:
        self.thresholds = tuple(thresholds)
        self._confusions = [Confusion(labels) for _ in self.thresholds]

    def add(self, best: Tensor, index: Tensor, truth: Tensor) -> None:
        """Count the pixels of an image; arguments as of `with_background` and `Confusion.add`."""
        best, index, truth = best.cpu(), index.cpu(), truth.cpu()
        for threshold, confusion in zip(self.thresholds, self._confusions, strict=True):
            confusion.add(with_background(best, index, threshold), truth)

    @property
    def counts(self) -> Tensor:
        """int64 [T, L, L]."""
        return torch.stack([confusion.counts for confusion in self._confusions])


@dataclass(frozen=True, slots=True)
class BackgroundChoice:
    """The background's score that gave the best mIoU.

    Attributes:
        background: score; the lowest of the best that the curve has. NaN where it has none, since every pixel is
            ignored.
        curve: mIoU in percent by score, two decimals; None where it is undefined.
    """

    background: float
    curve: dict[str, float | None]


def choose_background(counts: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> BackgroundChoice:
    """Choose the background's score.

    Args:
        counts: int64 [T, L, L], as `BackgroundSweep` counts them.
        thresholds: T scores.
    """
    means = torch.stack([ttd.confusion_shares(part).mean_iou for part in counts])
    curve = _by_threshold(means, thresholds)
    return BackgroundChoice(_best(curve, thresholds), curve)


def segmentation_figures(
    counts: Tensor, labels: Sequence[str], images: int, background: float | None
) -> dict[str, Any]:
    """Give the figures of a set.

    Args:
        counts: int64 [L, L], as `Confusion` counts them.
        labels: L names.
        images: in the set.
        background: score of the background that was used; None: there is none.

    Returns:
        mIoU, mFPR, mFNR: means of what `ttd.confusion_shares` gives, shares of the union, over the labels that the
        predictions or the masks have, the background included; pixel_accuracy; IoU by label. Percent, two decimals,
        None where undefined. Besides: background and images.

    Raises:
        ValueError: there are not L names, or as `ttd.confusion_shares`.
    """
    if len(labels) != len(counts):
        raise ValueError(f"there must be {len(counts)} labels, but there are {len(labels)}")
    shares = ttd.confusion_shares(counts)
    accuracy = counts.diagonal().sum().double() / counts.sum()
    return {
        "mIoU": _percent(shares.mean_iou),
        "mFPR": _percent(shares.mean_fpr),
        "mFNR": _percent(shares.mean_fnr),
        "pixel_accuracy": _percent(accuracy),
        "background": background,
        "images": images,
        "IoU": dict(zip(labels, map(_percent, shares.iou), strict=True)),
    }


class MaskOverlap:
    """Overlap of score maps with masks of what they should show, for each threshold.

    Two averages, since it is not known which one TTD's tables have: intersections and unions summed over the set, or
    the mean of the images' own ratios. An image without a union, where neither the mask nor the map has a pixel, counts
    in neither.

    Args:
        thresholds: T; a pixel is shown where its score is above.

    Attributes:
        counts: float64 [T, 4]: pixels of the intersections, of the unions; sum of the images' ratios, and their
            number. A set that is shared out has the sum of the parts' counts.
    """

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS) -> None:
        self.thresholds = tuple(thresholds)
        self.counts = torch.zeros(len(self.thresholds), 4, dtype=torch.float64)

    def add(self, scores: Tensor, mask: Tensor) -> None:
        """Count an image.

        Args:
            scores: float [H, W], finite.
            mask: bool or integers [H, W]: 1 shown, 0 not, `IGNORE` counts nowhere.

        Raises:
            ValueError: the shapes differ, a score is NaN, or a mask has another value.
        """
        if scores.ndim != 2 or scores.shape != mask.shape:
            raise ValueError(f"shapes differ: scores {tuple(scores.shape)}, mask {tuple(mask.shape)}")
        mask = mask.to(scores.device)
        counted = mask != IGNORE
        values, truth = scores[counted], mask[counted]
        if bool(torch.isnan(values).any()) or not bool(((truth == 0) | (truth == 1)).all()):
            raise ValueError(f"scores must be numbers, and a mask 0, 1 or {IGNORE}")
        for row, threshold in enumerate(self.thresholds):
            shown = values > threshold
            common, union = int((shown & (truth == 1)).sum()), int((shown | (truth == 1)).sum())
            if union:
                self.counts[row] += torch.tensor([common, union, common / union, 1], dtype=torch.float64)

    def figures(self) -> dict[str, dict[str, float | None]]:
        """Give both averages by threshold, percent, two decimals; None where no image has a union."""
        common, union, ratios, images = self.counts.T
        return {
            "summed": _by_threshold(common / union, self.thresholds),
            "per_image": _by_threshold(ratios / images, self.thresholds),
        }

    def best_threshold(self) -> float:
        """The lowest threshold of the highest overlap summed over the set; NaN where no image has a union."""
        return _best(self.figures()["summed"], self.thresholds)


def _best(curve: dict[str, float | None], thresholds: Sequence[float]) -> float:
    """The first threshold of the highest value; NaN where there is no value."""
    values = [-1.0 if value is None else value for value in curve.values()]
    return thresholds[values.index(max(values))] if max(values) >= 0 else math.nan


def threshold_key(threshold: float) -> str:
    """A threshold as the keys of the figures write it."""
    return f"{threshold:.2f}"


def _by_threshold(shares: Tensor, thresholds: Sequence[float]) -> dict[str, float | None]:
    return dict(zip(map(threshold_key, thresholds), map(_percent, shares), strict=True))


def _percent(share: Tensor) -> float | None:
    return round(100 * float(share), 2) if bool(torch.isfinite(share)) else None
