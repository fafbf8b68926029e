"""TTD: choose the words of a caption that an image shows, and make the caption's map the union of theirs.

Jo et al., *TTD: Text-Tag Self-Distillation Enhancing Image-Text Alignment in CLIP to Alleviate Single Tag Bias*,
ECCV 2024, arXiv 2404.00384. Its code was never released; what a figure does not show is a decision of ours, and the
docstrings say so.

The steps as pure functions on tensors: scores of a caption's tags (its words) from pixels, from the whole image or
from the caption, the choice among them, and the two losses of self-distillation; then what segmentation needs: windows
over an image, refinement of masks by its pixels (PAMR), and shares of a confusion matrix.

B images, K tags of each caption, padded to the same number and marked by `valid`, h x w cells of a map of cosines,
D the width of the embedding that images and texts share, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdistill.methods.checks import (
    at_least_float32,
    require_floating,
    require_non_negative,
    require_number,
    require_unit_range,
)

Rule = Literal["softmax_max", "cosine_minmax"]
ElementLoss = Literal["bce", "l1"]
Place = tuple[slice, slice]
"""Rows and columns of a window: `images[..., rows, columns]`."""

DILATIONS = (1, 2, 4, 8, 12, 24)
_DIRECTIONS = tuple(step for step in product((-1, 0, 1), repeat=2) if step != (0, 0))


class Losses(NamedTuple):
    """The loss and the two parts that it is the sum of, scalars."""

    total: Tensor
    caption: Tensor
    tags: Tensor


class Shares(NamedTuple):
    """Shares of the union, in [0, 1], of each class, float64 [C], and their means over classes that have a union."""

    iou: Tensor
    fpr: Tensor
    fnr: Tensor
    mean_iou: Tensor
    mean_fpr: Tensor
    mean_fnr: Tensor


def tag_scores(maps: Tensor, valid: Tensor, rule: Rule = "softmax_max", scale: float = 100.0) -> Tensor:
    """Score each tag by the pixel that is most like it.

    Two rules fit the figure of the paper, which names neither:
    softmax_max: the share of the tag among the caption's tags at a pixel, softmax_k(scale S_k), at its best pixel.
    cosine_minmax: the highest cosine, scaled so that the caption's lowest tag has 0 and its highest 1.

    Args:
        maps: S, [B, K, h, w], cosines of the cells and the tags.
        valid: bool [B, K]; false for padding, whose maps may hold anything.
        rule: see above.
        scale: of the cosines in the softmax, greater than 0; CLIP's own is 100. Unused by cosine_minmax.

    Returns:
        At least float32 [B, K], in [0, 1]; 0 for padding. 1 for the only tag of a caption; under cosine_minmax for all
        tags where they are equal. No gradient flows.

    Raises:
        ValueError: a wrong shape or type, an unknown `rule`, or an unlawful `scale`.

    Example:
        >>> maps = torch.tensor([[[[0.30, 0.10]], [[0.20, 0.20]], [[0.10, 0.12]]]])
        >>> tag_scores(maps, torch.tensor([[True, True, True]]), "cosine_minmax")
        tensor([[1.0000, 0.4444, 0.0000]])
        >>> tag_scores(maps, torch.tensor([[True, True, False]]))
        tensor([[1.0000, 1.0000, 0.0000]])
    """
    require_floating("maps", maps, "[B, K, h, w]")
    _require_mask("valid", valid, maps)
    cosines = at_least_float32(maps.detach())
    if rule == "softmax_max":
        return _shares_of_tags(cosines, valid, scale).amax(dim=(2, 3))
    if rule != "cosine_minmax":
        raise ValueError(f"rule must be softmax_max or cosine_minmax, but is {rule!r}")
    best = cosines.amax(dim=(2, 3))
    low = best.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    span = best.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True) - low
    return torch.where(span > 0, (best - low) / span, 1.0).masked_fill(~valid, 0)


def image_scores(image: Tensor, tags: Tensor, valid: Tensor, scale: float = 100.0) -> Tensor:
    """Score each tag by the whole image: softmax over the caption's tags of scale times the cosine.

    This is what the paper's figure shows to prefer one word of a caption to all others (single tag bias).

    Args:
        image: [B, D], embedding of the image; any norm.
        tags: [B, K, D], embeddings of the tags, each as a text of its own; any norm.
        valid: bool [B, K]; false for padding, whose embeddings may hold anything.
        scale: of the cosines, greater than 0; CLIP's own is 100.

    Returns:
        At least float32 [B, K], in [0, 1]; sums to 1 over a caption's tags, 0 for padding. No gradient flows.

    Raises:
        ValueError: a wrong shape or type, or an unlawful `scale`.

    Example:
        >>> tags = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> image_scores(torch.tensor([[1.0, 1.0]]), tags, torch.tensor([[True, True]]))
        tensor([[0.5000, 0.5000]])
    """
    return _whole_scores("image", image, tags, valid, scale)


def text_scores(caption: Tensor, tags: Tensor, valid: Tensor, scale: float = 100.0) -> Tensor:
    """Score each tag by the whole caption, [B, D], as `image_scores` does by the whole image; no image is seen."""
    return _whole_scores("caption", caption, tags, valid, scale)


def _whole_scores(name: str, whole: Tensor, tags: Tensor, valid: Tensor, scale: float) -> Tensor:
    require_floating(name, whole, "[B, D]")
    require_floating("tags", tags, "[B, K, D]")
    _require_mask("valid", valid, tags)
    if whole.shape != (len(tags), tags.shape[2]):
        raise ValueError(f"{name} [B, D] and tags [B, K, D] do not fit: {tuple(whole.shape)}, {tuple(tags.shape)}")
    whole, tags = (F.normalize(at_least_float32(part.detach()), dim=-1) for part in (whole, tags))
    return _shares_of_tags((tags @ whole[..., None])[..., 0], valid, scale)


def _shares_of_tags(cosines: Tensor, valid: Tensor, scale: float) -> Tensor:
    """Softmax of scale times the cosines [B, K, ...] over the valid tags; 0 for padding."""
    require_number("scale", scale, scale > 0, "greater than 0")
    padding = ~valid.reshape(*valid.shape, *[1] * (cosines.ndim - 2))
    # The lowest finite number: with -inf a caption without tags would have NaN.
    logits = (scale * cosines).masked_fill(padding, torch.finfo(cosines.dtype).min)
    return torch.softmax(logits, dim=1).masked_fill(padding, 0)


def select_tags(scores: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Keep the tags whose score is at least the threshold; the paper's value is unknown, 0.5 fits its figure.

    Args:
        scores: [B, K], in [0, 1].
        valid: bool [B, K]; padding is never kept.
        threshold: in [0, 1].

    Returns:
        bool [B, K]; a caption may keep no tag.

    Raises:
        ValueError: a wrong shape or type, or a value outside [0, 1] or NaN.

    Example:
        >>> scores = torch.tensor([[1.00, 0.82, 0.22, 0.18, 0.03, 0.00]])
        >>> select_tags(scores, torch.ones(1, 6, dtype=torch.bool), 0.5).tolist()
        [[True, True, False, False, False, False]]
    """
    require_floating("scores", scores, "[B, K]")
    _require_mask("valid", valid, scores)
    require_unit_range(scores=scores)
    require_number("threshold", threshold, 0 <= threshold <= 1, "in [0, 1]")
    return (scores >= threshold) & valid


def tag_targets(maps: Tensor, selected: Tensor) -> Tensor:
    """Make the targets of the tags' maps: M_k = min-max over the cells of S_k if tag k is selected, else 0.

    Args:
        maps: S, [B, K, h, w], cosines; those of tags that are not selected may hold anything.
        selected: bool [B, K].

    Returns:
        At least float32 [B, K, h, w], in [0, 1]; 0 for a constant map. No gradient flows.

    Raises:
        ValueError: a wrong shape or type.

    Example:
        >>> tag_targets(torch.tensor([[[[0.1, 0.2, 0.3]], [[0.1, 0.2, 0.3]]]]), torch.tensor([[True, False]]))[0, :, 0]
        tensor([[0.0000, 0.5000, 1.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    require_floating("maps", maps, "[B, K, h, w]")
    _require_mask("selected", selected, maps)
    maps = at_least_float32(maps.detach())
    low = maps.amin(dim=(2, 3), keepdim=True)
    span = maps.amax(dim=(2, 3), keepdim=True) - low
    scaled = (maps - low) / torch.where(span > 0, span, 1.0)
    return scaled.masked_fill(~selected[..., None, None], 0)


def union_target(targets: Tensor) -> Tensor:
    """Make the target of the caption's map: the largest of its tags' targets [B, K, h, w] in each cell, [B, h, w].

    Raises:
        ValueError: a wrong shape or type.
    """
    require_floating("targets", targets, "[B, K, h, w]")
    return targets.detach().amax(dim=1)


def calibrate(cosines: Tensor, slope: float = 10.0, shift: float = -2.5) -> Tensor:
    """Turn cosines into mask probabilities: sigmoid(slope * s + shift).

    The paper's calibration is unknown. TCL's masks start from the same two numbers (kakaobrain/tcl), which put the
    half at a cosine of 0.25.

    Args:
        cosines: any shape, in [-1, 1].
        slope: greater than 0.
        shift: finite.

    Returns:
        The same shape, at least float32, in [0, 1]; differentiable.

    Raises:
        ValueError: an unlawful number.

    Example:
        >>> calibrate(torch.tensor([0.25, 0.35]))
        tensor([0.5000, 0.7311])
    """
    return torch.sigmoid(_mask_logits(cosines, slope, shift))


def _mask_logits(cosines: Tensor, slope: float, shift: float) -> Tensor:
    require_number("slope", slope, slope > 0, "greater than 0")
    require_number("shift", shift, True, "finite")
    return slope * at_least_float32(cosines) + shift


def ttd_loss(
    tag_maps: Tensor,
    caption_map: Tensor,
    selected: Tensor,
    valid: Tensor,
    loss: ElementLoss = "bce",
    slope: float = 10.0,
    shift: float = -2.5,
) -> Losses:
    """Draw the caption's map to the union of the selected tags, and each tag's map to its own target.

    L = l(calibrate(S_text), U) + mean over tags of l(calibrate(S_k), M_k), with M and U from `tag_targets` and
    `union_target`: a tag that is not selected is drawn to 0, and so is a caption of which none is. The mean over the
    cells is inside l, and the loss is the mean over the images, so that captions count alike however long they are.
    Which l the paper takes is unknown; it draws no weights of the two terms.

    Args:
        tag_maps: S_k, [B, K, h, w], cosines, in [-1, 1].
        caption_map: S_text, [B, h, w], cosines, in [-1, 1].
        selected: bool [B, K], as `select_tags` gives; no padding among them.
        valid: bool [B, K]; false for padding, whose maps may hold anything.
        loss: l of a cell. bce: binary cross-entropy; its minimum is the targets' entropy, not 0. l1: |difference|.
        slope: of `calibrate`.
        shift: of `calibrate`.

    Returns:
        The sum and its two parts, at least float32. Images whose caption has no tag are left out; 0, with gradient 0,
        where there is no other. No gradient flows through the targets.

    Raises:
        ValueError: a wrong shape or type, padding that is selected, or an unlawful argument.
    """
    require_floating("tag_maps", tag_maps, "[B, K, h, w]")
    require_floating("caption_map", caption_map, "[B, h, w]")
    if caption_map.shape != (len(tag_maps), *tag_maps.shape[2:]):
        raise ValueError(
            "tag_maps [B, K, h, w] and caption_map [B, h, w] do not fit: "
            f"{tuple(tag_maps.shape)}, {tuple(caption_map.shape)}"
        )
    _require_mask("selected", selected, tag_maps)
    _require_mask("valid", valid, tag_maps)
    if bool((selected & ~valid).any()):
        raise ValueError("selected must be within valid, but has padding")
    if loss not in ("bce", "l1"):
        raise ValueError(f"loss must be bce or l1, but is {loss!r}")
    targets = tag_targets(tag_maps, selected)
    tagged = valid.any(dim=1)
    # Filled before the loss: a mask afterwards would keep the NaN of a padded map in the gradient.
    tag_maps = tag_maps.masked_fill(~valid[..., None, None], 0)
    caption_map = caption_map.masked_fill(~tagged[:, None, None], 0)
    of_tags = _map_loss(_mask_logits(tag_maps, slope, shift), targets, loss)
    of_caption = _map_loss(_mask_logits(caption_map, slope, shift), union_target(targets), loss)
    images = tagged.sum().clamp(min=1)
    caption = (of_caption * tagged).sum() / images
    tags = ((of_tags * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)).sum() / images
    return Losses(caption + tags, caption, tags)


def _map_loss(logits: Tensor, targets: Tensor, loss: ElementLoss) -> Tensor:
    """Mean of the element loss over the cells, which are the last two axes."""
    if loss == "bce":
        cells = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    else:
        cells = F.l1_loss(torch.sigmoid(logits), targets, reduction="none")
    return cells.mean(dim=(-2, -1))


def _require_mask(name: str, mask: Tensor, table: Tensor) -> None:
    """Refuse what is not bool [B, K], as the first two axes of `table` are."""
    if mask.dtype != torch.bool or mask.shape != table.shape[:2]:
        raise ValueError(f"{name} must be bool {list(table.shape[:2])}, but is {mask.dtype} {list(mask.shape)}")


@torch.no_grad()
def pamr(
    images: Tensor, masks: Tensor, dilations: Sequence[int] = DILATIONS, iterations: int = 10, chunk: int = 32
) -> Tensor:
    """Refine masks by the pixels of their image: pixel-adaptive mask refinement.

    Each pass replaces the mask at a pixel i by the mean of its neighbours j, weighed by how alike the pixels are:
    softmax_j of the mean over channels of -|x_i - x_j| / (0.1 std_i + 1e-8). The neighbours are the 8 pixels around i
    at each dilation; beyond the border they are the nearest pixels of the image. std_i is the unbiased deviation over
    the neighbours and i, which counts once for each dilation.

    Idea and constants: Araslanov and Roth, *Single-Stage Semantic Segmentation from Image Labels*, CVPR 2020, arXiv
    2005.08104 (visinf/1-stage-wseg, Apache-2.0); written anew. That code holds a copy of the masks for each neighbour,
    B C P H W numbers for P neighbours. Here the passes hold B P H W numbers for the weights and B chunk H W a few
    times.

    Args:
        images: [B, 3, H, W], or another number of channels; any scale, below 1e18 (the deviation squares them).
        masks: [B, C, H, W], of the images' size; finite.
        dilations: pixels, each at least 1.
        iterations: passes, at least 0; 0 returns the masks.
        chunk: classes refined at a time, at least 1. It changes memory alone: the weights are computed once, and
            the result is the same to the bit.

    Returns:
        At least float32 [B, C, H, W], each map within the range that it had. No gradient flows.

    Raises:
        ValueError: a wrong shape or type, no dilation, or an unlawful number.
    """
    require_floating("images", images, "[B, 3, H, W]")
    require_floating("masks", masks, "[B, C, H, W]")
    if len(images) != len(masks) or images.shape[2:] != masks.shape[2:]:
        raise ValueError(
            f"images [B, 3, H, W] and masks [B, C, H, W] do not fit: {tuple(images.shape)}, {tuple(masks.shape)}"
        )
    if not dilations or min(dilations) < 1:
        raise ValueError(f"dilations must be one or more, each at least 1, but are {list(dilations)}")
    require_number("iterations", iterations, iterations >= 0, "0 or greater")
    require_number("chunk", chunk, chunk >= 1, "1 or greater")
    weights = _affinity(at_least_float32(images), dilations)
    refined = at_least_float32(masks).clone()
    for start in range(0, masks.shape[1], chunk):
        part = refined[:, start : start + chunk]
        part.copy_(_propagate(part, weights, dilations, iterations))
    return refined


def _affinity(images: Tensor, dilations: Sequence[int]) -> Tensor:
    """Weights of the neighbours, [B, P, H, W], P = 8 len(dilations); they sum to 1 over P."""
    neighbours = list(_neighbours(images, dilations))  # views of one tensor
    # Differences from the pixel, so that its own is 0 and a constant neighbourhood has a deviation of exactly 0.
    count = len(neighbours) + len(dilations)
    mean = sum((other - images for other in neighbours), start=torch.zeros_like(images)) / count
    squares = sum(((other - images - mean).square() for other in neighbours), start=len(dilations) * mean.square())
    unit = 0.1 * (squares / (count - 1)).sqrt() + 1e-8
    likeness = [-((other - images).abs() / unit).mean(dim=1) for other in neighbours]
    return torch.softmax(torch.stack(likeness, dim=1), dim=1)


def _propagate(masks: Tensor, weights: Tensor, dilations: Sequence[int], iterations: int) -> Tensor:
    """Repeat the weighted mean over the neighbours, and keep what rounding adds within the range of each map."""
    low, high = masks.amin(dim=(2, 3), keepdim=True), masks.amax(dim=(2, 3), keepdim=True)
    for _ in range(iterations):
        total = torch.zeros_like(masks)
        for weight, neighbour in zip(weights.unbind(dim=1), _neighbours(masks, dilations), strict=True):
            # A product and a sum, each rounded: a fused one may round otherwise for another number of classes.
            total += weight[:, None] * neighbour
        masks = total
    return masks.clamp(low, high)


def _neighbours(values: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The 8 neighbours of every pixel at each dilation, as views [B, C, H, W] of one padded copy."""
    reach = max(dilations)
    padded = F.pad(values, [reach] * 4, mode="replicate")
    height, width = values.shape[2:]
    for dilation, (down, right) in product(dilations, _DIRECTIONS):
        top, left = reach + dilation * down, reach + dilation * right
        yield padded[..., top : top + height, left : left + width]


def sliding_windows(height: int, width: int, window: int, stride: int) -> list[Place]:
    """Place square windows so that they cover an image: one every `stride` pixels, the last ones moved inside.

    Args:
        height: pixels, at least 1.
        width: pixels, at least 1.
        window: side in pixels, at least 1; along a side of the image that is shorter, the window is as short.
        stride: pixels, from 1 to `window`, so that no pixel is left out.

    Returns:
        Rows and columns of each window, row by row, none twice; all windows are of one shape.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> [(rows.start, columns.start) for rows, columns in sliding_windows(4, 9, window=4, stride=3)]
        [(0, 0), (0, 3), (0, 5)]
    """
    require_number("height", height, height >= 1, "1 or greater")
    require_number("width", width, width >= 1, "1 or greater")
    require_number("window", window, window >= 1, "1 or greater")
    require_number("stride", stride, 1 <= stride <= window, f"in [1, window = {window}]")
    return list(product(_stretches(height, window, stride), _stretches(width, window, stride)))


def _stretches(length: int, window: int, stride: int) -> list[slice]:
    window = min(window, length)
    starts = [*range(0, length - window, stride), length - window]
    return [slice(start, start + window) for start in starts]


def merge_windows(maps: Iterable[Tensor], places: Sequence[Place], height: int, width: int) -> Tensor:
    """Average the maps of windows where they overlap.

    Args:
        maps: [..., window rows, window columns] of each place, floating point, in the order of the places. They are
            taken one after another, so that a generator need not hold them all.
        places: as `sliding_windows` gives them.
        height: pixels.
        width: pixels.

    Returns:
        At least float32 [..., height, width].

    Raises:
        ValueError: not one map of the right size for each place, or places that leave a pixel uncovered.

    Example:
        >>> places = sliding_windows(1, 3, window=2, stride=1)
        >>> merge_windows([torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 8.0]])], places, 1, 3)
        tensor([[1., 3., 8.]])
    """
    left = iter(maps)
    total, count = torch.zeros(0), torch.zeros(height, width)
    for number, (rows, columns) in enumerate(places):
        part = next(left, None)
        if part is None:
            raise ValueError(f"maps must be one for each of {len(places)} places, but are {number}")
        if number == 0:
            total = at_least_float32(part).new_zeros(*part.shape[:-2], height, width)
        if part.shape != total[..., rows, columns].shape:
            expected = list(total[..., rows, columns].shape)
            raise ValueError(f"map {number} must be {expected}, but is {list(part.shape)}")
        total[..., rows, columns] += part
        count[rows, columns] += 1
    if next(left, None) is not None:
        raise ValueError(f"maps must be one for each of {len(places)} places, but are more")
    if not bool(count.all()):
        raise ValueError(f"places must cover {height} x {width} pixels, but leave {int((count == 0).sum())} out")
    return total / count.to(total)


def confusion_shares(confusion: Tensor) -> Shares:
    """Split the union of predicted and true pixels of each class into found, wrong and missed.

    With P predicted pixels of a class, T true ones, TP both, and union = P + T - TP:
    IoU = TP / union, FPR = (P - TP) / union, FNR = (T - TP) / union, and so IoU + FPR + FNR = 1. They are what TTD's
    tables mean by these names (evaluators of shjo-april/DHR): shares of the union, not the usual rates. The tables
    give them in percent.

    Args:
        confusion: [C, C], pixels by true class (rows) and predicted class (columns) over the whole set, without those
            to be ignored; 0 or greater, as torchmetrics' `MulticlassConfusionMatrix` counts them.

    Returns:
        Shares in [0, 1], not percent; NaN for a class that is neither predicted nor true. The means leave such classes
        out; NaN where all are.

    Raises:
        ValueError: not a square matrix, a negative or infinite value, or NaN.

    Example:
        >>> shares = confusion_shares(torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]]))
        >>> shares.iou
        tensor([0.6667, 0.5000,    nan], dtype=torch.float64)
        >>> shares.fpr
        tensor([0.1111, 0.3333,    nan], dtype=torch.float64)
        >>> round(shares.mean_iou.item(), 4)
        0.5833
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or not len(confusion):
        raise ValueError(f"confusion must be [C, C], but is {list(confusion.shape)}")
    require_non_negative(confusion=confusion)
    counts = confusion.double()
    found = counts.diagonal()
    wrong, missed = counts.sum(dim=0) - found, counts.sum(dim=1) - found
    union = found + wrong + missed
    iou, fpr, fnr = (part / union for part in (found, wrong, missed))
    return Shares(iou, fpr, fnr, iou.nanmean(), fpr.nanmean(), fnr.nanmean())
