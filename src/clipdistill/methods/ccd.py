"""CCD: classifier-guided CLIP distillation for unsupervised multi-label classification.

Source: Kim and Shim, CVPR 2025, arXiv 2503.16873. The formulas are those of the authors' released code
(k0u-id/CCD); a docstring says where a function departs from it.

The steps as pure functions on tensors, in their order: class_bias -> debias gives the first labels, and a
student trains on them; select_classes -> cam_boxes says where it sees which classes; CLIP scores the crops;
refine mixes these scores into the labels, and the student trains on. N images, V views, C classes, B a batch,
K class activation maps (CAMs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdistill.methods.checks import (
    at_least_float32,
    require_floating,
    require_non_negative,
    require_number,
    require_same_shape,
    require_unit_range,
    view_counts,
)

Component = Literal["all", "largest", "peak"]

_COMPONENTS = ("all", "largest", "peak")
_ROUNDING = 1e-12


def class_bias(scores: Tensor, max_entropy: float, min_count: int = 1) -> Tensor:
    """Measure how high CLIP scores each class where it is sure: the mean top-1 score of its images.

    Source: the paper's class bias. The released code divides 0 by 0 for a class without such an image.

    Args:
        scores: [N, C], finite, 0 or greater; N at least 1.
        max_entropy: nats, 0 or greater; only the images that `confident` keeps count.
        min_count: a class that is the top-1 of fewer images takes the mean top-1 score of all kept images, or of
            all images where none is kept. 1 or greater.

    Returns:
        At least float32 [C], finite and greater than 0.

    Raises:
        ValueError: no image, scores that are all 0, a wrong shape, or an unlawful value.

    Example:
        >>> class_bias(torch.tensor([[0.9, 0.1, 0.0], [0.7, 0.3, 0.0], [0.4, 0.6, 0.0]]), max_entropy=2.0)
        tensor([0.8000, 0.6000, 0.7333])
    """
    kept = confident(scores, max_entropy)
    require_number("min_count", min_count, min_count >= 1, "1 or greater")
    if not bool((scores > 0).any()):
        raise ValueError("scores must have an image with a score above 0: no bias can be measured")
    top, label = scores.double().max(dim=1)
    count = torch.bincount(label[kept], minlength=scores.shape[1])
    total = torch.zeros_like(count, dtype=top.dtype).index_add(0, label[kept], top[kept])
    overall = top[kept].mean() if bool(kept.any()) else top.mean()
    bias = torch.where(count >= min_count, total / count.clamp(min=1), overall)
    dtype = at_least_float32(scores).dtype
    return bias.to(dtype).clamp(min=torch.finfo(dtype).tiny)


def confident(scores: Tensor, max_entropy: float) -> Tensor:
    """Flag the images whose scores have a low entropy.

    Args:
        scores: [N, C], finite, 0 or greater. A row need not sum to 1; its entropy is that of the row scaled to
            sum 1.
        max_entropy: nats, 0 or greater; from ln C on it keeps every row but one of zeros.

    Returns:
        bool [N], entropy <= `max_entropy`.

    Raises:
        ValueError: a wrong shape, a negative or infinite value, or NaN.
    """
    require_floating("scores", scores, "[N, C]")
    require_non_negative(scores=scores)
    require_number("max_entropy", max_entropy, max_entropy >= 0, "0 or greater")
    shares = scores.double() / scores.double().amax(dim=1, keepdim=True)
    shares = shares / shares.sum(dim=1, keepdim=True)
    entropy: Tensor = torch.special.entr(shares).sum(dim=1)
    return entropy <= max_entropy + _ROUNDING  # a row of zeros has NaN, which compares false


def image_weights(scores: Tensor, max_entropy: float, added: float) -> Tensor:
    """Weigh the images in the loss: 1 for confident ones, `added` for the others.

    Source: released code, loss from the first refinement on; there 0.1, or 1 in the VOC 2012 script.

    Args:
        scores: [N, C], finite, 0 or greater.
        max_entropy: nats, 0 or greater.
        added: 0 or greater; 1 or more weighs all images alike.

    Returns:
        float32 [N], in [0, 1]: the flag plus `added`, clamped.

    Raises:
        ValueError: as `confident`, or a negative `added`.
    """
    require_number("added", added, added >= 0, "0 or greater")
    return (confident(scores, max_entropy).float() + added).clamp(0, 1)


def debias(scores: Tensor, bias: Tensor, floor: float = 0.0) -> Tensor:
    """Divide scores by the bias of their class: max(scores, floor) / bias.

    Source: the paper's debiasing; the floor (1/20 in the VOC 2012 script) is the released code's. That code also
    clamps to 1, which ties the highest scores; here a caller clamps, for training alone. Without floor and clamp,
    a factor per class changes no ranking within a class.

    Args:
        scores: [N, C], finite, 0 or greater.
        bias: [C], finite, greater than 0.
        floor: 0 or greater.

    Returns:
        At least float32 [N, C], 0 or greater; may exceed 1.

    Raises:
        ValueError: a wrong shape or an unlawful value.
    """
    require_floating("scores", scores, "[N, C]")
    require_non_negative(scores=scores)
    require_number("floor", floor, floor >= 0, "0 or greater")
    if bias.shape != scores.shape[1:]:
        raise ValueError(f"bias must be [{scores.shape[1]}], one value per class, but has shape {tuple(bias.shape)}")
    lawful = (bias > 0) & torch.isfinite(bias)
    if not bool(lawful.all()):
        column = int((~lawful).nonzero()[0, 0])
        raise ValueError(f"bias must be finite and greater than 0, but is {bias[column].item()} for class {column}")
    return at_least_float32(scores).clamp(min=floor) / bias


def select_classes(probabilities: Tensor, target_count: float) -> tuple[Tensor, float]:
    """Select the classes the student sees, so many that `target_count` per image are selected on average.

    Source: the paper's selection by a threshold. The released code searches the threshold upwards on other views
    than it applies it to, and selects about twice as many as it asks for. Here it is a quantile of the values
    themselves: the k-th largest, k being N * target_count, rounded, at least 1.

    Args:
        probabilities: [N, C], in [0, 1]; N at least 1.
        target_count: classes per image, greater than 0; C or more selects everything.

    Returns:
        bool [N, C], probability >= threshold, and the threshold. Values equal to the threshold are all selected,
        so ties select more than asked; a constant input selects everything.

    Raises:
        ValueError: no image, a wrong shape, or an unlawful value.

    Example:
        >>> select_classes(torch.tensor([[0.75, 0.5], [0.25, 0.0]]), target_count=1)
        (tensor([[ True,  True],
                [False, False]]), 0.5)
    """
    require_floating("probabilities", probabilities, "[N, C]")
    require_unit_range(probabilities=probabilities)
    require_number("target_count", target_count, target_count > 0, "greater than 0")
    images, classes = probabilities.shape
    if not images:
        raise ValueError("probabilities must have at least one image")
    rank = max(1, round(images * min(target_count, classes)))
    # kthvalue counts from the smallest, and gives one of the values where a quantile may lie between two.
    threshold = probabilities.flatten().kthvalue(images * classes - rank + 1).values.item()
    return probabilities >= threshold, threshold


def refine(old: Tensor, view_scores: Tensor, offset: Tensor, bias: Tensor, ratio: float, floor: float = 0.0) -> Tensor:
    """Mix what CLIP says of the views into the labels: ratio * old + (1 - ratio) * debias(u, bias, floor).

    u is the maximum over the views of an image.

    Source: the paper's label update; ratio 0.2 (VOC 2012 script) or 0.8 from the released code. That code takes u = 0
    for an image without a view, which pulls its labels down to floor / bias, and clamps; here such an image keeps its
    labels, and nothing is clamped.

    Args:
        old: [N, C], labels before clamping, finite, 0 or greater.
        view_scores: [V, C], CLIP's scores of the views, finite, 0 or greater.
        offset: int64 [N + 1]; the views of image i are the rows offset[i]:offset[i + 1], possibly none.
        bias: [C], finite, greater than 0.
        ratio: share of the old labels, in [0, 1]; 1 returns them.
        floor: 0 or greater.

    Returns:
        At least float32 [N, C], 0 or greater; may exceed 1.

    Raises:
        ValueError: a wrong shape or type, an offset that does not cover the rows, or an unlawful value.

    Example:
        >>> old, views = torch.tensor([[0.5], [0.5]]), torch.tensor([[0.2], [0.8]])
        >>> refine(old, views, torch.tensor([0, 2, 2]), torch.tensor([0.8]), ratio=0.2).T
        tensor([[0.9000, 0.5000]])
    """
    require_floating("old", old, "[N, C]")
    require_non_negative(old=old, view_scores=view_scores)
    require_number("ratio", ratio, 0 <= ratio <= 1, "in [0, 1]")
    counts = view_counts(view_scores, offset, allow_empty=True)
    expected = (len(counts), view_scores.shape[1])
    if old.shape != expected:
        raise ValueError(f"old must be {list(expected)}, as offset and view_scores say, but is {list(old.shape)}")
    views, bounds = at_least_float32(view_scores), offset.to(view_scores.device)
    highest = torch.segment_reduce(views, "max", offsets=bounds, axis=0, initial=0.0)
    kept = at_least_float32(old)
    mixed = ratio * kept + (1 - ratio) * debias(highest, bias, floor)
    changes = (counts > 0).to(old.device) & (ratio < 1)
    return torch.where(changes[:, None], mixed, kept)


def boost_positive(cam: Tensor, alpha: float) -> Tensor:
    """Multiply the positive part of a map: alpha * cam where cam > 0, else cam.

    Source: BoostLU, Kim et al., CVPR 2023, as the released code applies it; alpha 3 (VOC 2012 script) or 0.8.

    Args:
        cam: any shape.
        alpha: greater than 0; 1 changes nothing.

    Returns:
        The same shape and type; differentiable.

    Raises:
        ValueError: `alpha` is not a positive finite number.
    """
    require_number("alpha", alpha, alpha > 0, "greater than 0")
    return torch.where(cam > 0, alpha * cam, cam)


def label_loss(labels: Tensor, logits: Tensor, weight: Tensor | None = None) -> Tensor:
    """Loss on the labels: mean over batch and classes of weight * binary cross-entropy.

    Args:
        labels: [B, C], in [0, 1].
        logits: [B, C].
        weight: [B], of the images, 0 or greater; None: 1. The mean divides by B * C, whatever the weights.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: the shapes do not fit.
    """
    require_same_shape(labels=labels, logits=logits)
    loss = _cross_entropy(logits, labels)
    if weight is None:
        return loss.mean()
    if loss.ndim != 2 or weight.shape != loss.shape[:1]:
        raise ValueError(f"weight must be [B] for logits [B, C], but is {list(weight.shape)} for {list(logits.shape)}")
    return (at_least_float32(weight)[:, None] * loss).mean()


def consistency_loss(jittered_logits: Tensor, logits: Tensor) -> Tensor:
    """Draw the predictions of a colour-jittered view to those of the plain one: mean binary cross-entropy.

    Args:
        jittered_logits: [B, C].
        logits: [B, C], of the same images; their sigmoid is the target, and no gradient flows into them.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(jittered_logits=jittered_logits, logits=logits)
    return _cross_entropy(jittered_logits, torch.sigmoid(at_least_float32(logits.detach()))).mean()


def curvature_epoch(train_map: Sequence[float]) -> int:
    """Choose an epoch without true labels: the first one whose gain in train mAP exceeds the gain before it.

    Source: released code, where no epoch is chosen if that never happens. The gain of epoch 0 counts as 100.

    Args:
        train_map: for each epoch, mAP of the predictions against the pseudo-labels in percent, in [0, 100]; NaN
            where it is undefined, which no gain is reckoned from.

    Returns:
        Index of the epoch, from 0; the last one where no gain exceeds the one before.

    Raises:
        ValueError: no epoch, or a value outside [0, 100].

    Example:
        >>> curvature_epoch([28.5, 73.0, 82.7, 86.0, 88.0, 90.1, 91.0])
        5
    """
    if not len(train_map):
        raise ValueError("train_map must have at least one epoch")
    for epoch, value in enumerate(train_map):
        if not (math.isnan(value) or 0 <= value <= 100):
            raise ValueError(f"train_map must lie in [0, 100], but is {value} in epoch {epoch}")
    gains = [100.0, *(after - before for before, after in pairwise(train_map))]
    turns = (epoch for epoch in range(1, len(gains)) if gains[epoch] > gains[epoch - 1])
    return next(turns, len(gains) - 1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(at_least_float32(logits), at_least_float32(target), reduction="none")


def upsample_cam(cam: Tensor, size: int) -> Tensor:
    """Resize maps to size x size, bilinearly, with the corners of the outer cells as the corners of the image.

    Args:
        cam: floating point [K, h, w].
        size: cells per side, 1 or greater.

    Returns:
        [K, size, size].

    Raises:
        ValueError: a wrong shape or size.
    """
    require_floating("cam", cam, "[K, h, w]")
    require_number("size", size, size >= 1, "1 or greater")
    return F.interpolate(cam[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]


def cam_boxes(cam: Tensor, threshold: float, margin: float, component: Component = "all") -> Tensor:
    """Box the region where each class activation map is high.

    Source: the paper's local views; values from the released code: threshold 0.95, margin 80 or 40 of 640 pixels.
    That code takes the columns of the first and last cell in reading order, which cuts slanted regions; here the
    box holds the whole region.

    Args:
        cam: floating point [K, h, w], without NaN.
        threshold: of the map scaled to minimum 0 and maximum 1, in [0, 1); the mask is what lies above, and the
            cells of the maximum.
        margin: added on each side, as a fraction of the map's side; 0 or greater.
        component: all: the box of the mask. largest: of its largest connected region (cells that share a side); of
            equal ones the one with the maximum, else the first in reading order. peak: of the one with the maximum.
            The maximum is the first in reading order. Regions are much slower than all on maps of 640 x 640.

    Returns:
        float32 [K, 4], x0, y0, x1, y1 as fractions of the map's width and height, in [0, 1], x0 < x1, y0 < y1. The
        whole image for a constant map, and for one whose range is infinite.

    Raises:
        ValueError: a wrong shape, NaN, or an unlawful value.
    """
    require_floating("cam", cam, "[K, h, w]")
    require_number("threshold", threshold, 0 <= threshold < 1, "in [0, 1)")
    require_number("margin", margin, margin >= 0, "0 or greater")
    if component not in _COMPONENTS:
        raise ValueError(f"component must be one of {list(_COMPONENTS)}, but is {component!r}")
    if bool(cam.isnan().any()):
        raise ValueError(f"cam must have no NaN, but map {int(cam.isnan().nonzero()[0, 0])} has")
    mask = _high_cells(at_least_float32(cam), threshold)
    if component != "all":
        mask &= _chosen_region(mask, cam.flatten(1).argmax(dim=1), by_size=component == "largest")
    (x0, x1), (y0, y1) = _extent(mask.any(dim=1)), _extent(mask.any(dim=2))
    widened = torch.stack([x0 - margin, y0 - margin, x1 + margin, y1 + margin], dim=1)
    return widened.clamp(0, 1).float()


def _high_cells(cam: Tensor, threshold: float) -> Tensor:
    """Cells above the threshold of the scaled map, and those of the maximum; all where it cannot be scaled."""
    low, high = cam.amin(dim=(1, 2), keepdim=True), cam.amax(dim=(1, 2), keepdim=True)
    span = high - low
    scalable = (span > 0) & torch.isfinite(span)
    return ((cam - low) / span > threshold) | (cam == high) | ~scalable


def _chosen_region(mask: Tensor, peak: Tensor, by_size: bool) -> Tensor:
    """The connected region of each mask that holds the cell `peak`, or the largest one."""
    region = _first_cells(mask)
    if by_size:
        cells = mask.flatten(1).long()
        # Twice the size, so that the one more for the peak decides between equal regions alone.
        score = torch.zeros_like(region).scatter_add(1, region, 2 * cells)
        score.scatter_add_(1, region.gather(1, peak[:, None]), torch.ones_like(peak)[:, None])
        chosen = score.argmax(dim=1, keepdim=True)
    else:
        chosen = region.gather(1, peak[:, None])
    return (region == chosen).view_as(mask)


def _first_cells(mask: Tensor) -> Tensor:
    """Label each cell with the first cell, in reading order, of its connected region: int64 [K, h * w].

    A cell outside the mask is labelled with itself. Each round takes the least label among the neighbours, hands
    it on to the cell that the old label names, and follows the labels one step: a long region takes few rounds
    more than a short one. Labels only fall, so the rounds end.
    """
    cells = torch.arange(mask.shape[1] * mask.shape[2], device=mask.device)
    label = cells.repeat(len(mask), 1)
    while True:
        least = _least_neighbour(label.view_as(mask), mask).flatten(1)
        if torch.equal(least, label):
            return label
        joined = torch.minimum(label.scatter_reduce(1, label, least, "amin"), least)
        label = joined.gather(1, joined)


def _least_neighbour(label: Tensor, mask: Tensor) -> Tensor:
    """Least label of each cell of the mask and the cells of the mask that share a side with it."""
    outside = label.numel()  # more than any label
    padded = F.pad(torch.where(mask, label, outside), (1, 1, 1, 1), value=outside)
    across = torch.minimum(padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    along = torch.minimum(padded[:, :-2, 1:-1], padded[:, 2:, 1:-1])
    return torch.where(mask, torch.minimum(label, torch.minimum(across, along)), label)


def _extent(hit: Tensor) -> tuple[Tensor, Tensor]:
    """First side and last side of the cells that are hit, as fractions of the length, both [K]."""
    length = hit.shape[1]
    index = torch.arange(length, device=hit.device)
    first = torch.where(hit, index, length).amin(dim=1)
    last = torch.where(hit, index, -1).amax(dim=1)
    return first / length, (last + 1) / length
