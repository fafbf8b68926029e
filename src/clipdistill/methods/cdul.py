"""CDUL: CLIP-driven unsupervised learning for multi-label image classification.

Source: Abdelfattah et al., ICCV 2023, arXiv 2307.16634; equations as restated in arXiv 2405.11574.

The paper's mathematics as pure functions on tensors: similarity scores (Eq. 1 to 4), their aggregation over
snippets (Eq. 5, 6), the first pseudo-labels (Eq. 7) and gradient alignment (Eq. 8). N images, V views, C
classes, B a batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdistill.methods.checks import (
    at_least_float32,
    require_number,
    require_same_shape,
    require_unit_range,
    view_counts,
)

EPS = 1e-6

Head = Literal["sigmoid", "softmax"]


def scores(cosine: Tensor, temperature: float = 0.01) -> Tensor:
    """Turn cosine similarities into scores that compete over the classes (Eq. 1 to 4).

    The temperature divides. CLIP's learnt one is 1/100: a cosine that is 0.05 higher then has odds of exp(5).
    The logarithm of CLIP's scale, 4.605, is no temperature; dividing by it leaves the scores of all classes
    nearly equal.

    Args:
        cosine: [..., C], cosines of image (or snippet) and text embeddings, in [-1, 1]; one constant added to
            a whole row changes nothing.
        temperature: divisor, greater than 0.

    Returns:
        float32 [..., C], in [0, 1]; sums to 1 over the last axis.

    Raises:
        ValueError: `cosine` has no class axis, or `temperature` is not a positive finite number.

    Example:
        >>> row = scores(torch.tensor([0.25, 0.20]))
        >>> round(math.log(row[0] / row[1]), 4)
        5.0
    """
    if cosine.ndim < 1 or cosine.shape[-1] < 1:
        raise ValueError(f"cosine must have at least one class on its last axis, but has shape {tuple(cosine.shape)}")
    require_number("temperature", temperature, temperature > 0, "greater than 0")
    return torch.softmax(cosine.float() / temperature, dim=-1)


def extremes(view_scores: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce the scores of all snippets to the highest and the lowest of each image: alpha and beta (Eq. 5).

    Args:
        view_scores: [V, C], floating point.
        offset: int64 [N + 1]; the views of image i are the rows offset[i]:offset[i + 1], at least one.

    Returns:
        Maximum and minimum over the views of each image, both [N, C].

    Raises:
        ValueError: a wrong shape or type, an offset that does not cover the rows, or an image without views.

    Example:
        >>> maximum, minimum = extremes(torch.tensor([[0.9], [0.2], [0.4]]), torch.tensor([0, 2, 3]))
        >>> maximum.T, minimum.T
        (tensor([[0.9000, 0.4000]]), tensor([[0.2000, 0.4000]]))
    """
    counts = view_counts(view_scores, offset)
    if len(counts) and bool((counts == counts[0]).all()):
        views = view_scores.reshape(len(counts), -1, view_scores.shape[1])  # [N, R, C]
        return views.amax(dim=1), views.amin(dim=1)
    bounds = offset.to(view_scores.device)
    maximum = torch.segment_reduce(view_scores, "max", offsets=bounds, axis=0)
    return maximum, torch.segment_reduce(view_scores, "min", offsets=bounds, axis=0)


def gamma(maximum: Tensor, threshold: float) -> Tensor:
    """Say where a class is found in some snippet (Eq. 5).

    Args:
        maximum: [N, C], highest snippet score, alpha.
        threshold: zeta, 0 or greater. It means something only within the range of `maximum`: where this
            function is false everywhere, the aggregate is the plain minimum.

    Returns:
        bool [N, C].

    Raises:
        ValueError: `threshold` is negative or not finite.
    """
    require_number("threshold", threshold, threshold >= 0, "0 or greater")
    return maximum >= threshold


def aggregate(maximum: Tensor, minimum: Tensor, threshold: float) -> Tensor:
    """Aggregate the snippets: the maximum where a class is found in one of them, else the minimum (Eq. 5, 6).

    Args:
        maximum: [N, C], alpha.
        minimum: [N, C], beta.
        threshold: zeta, 0 or greater; 0 gives `maximum`, more than 1 gives `minimum`.

    Returns:
        [N, C], S_agg.

    Raises:
        ValueError: the shapes differ, or `threshold` is negative or not finite.
    """
    require_same_shape(maximum=maximum, minimum=minimum)
    return torch.where(gamma(maximum, threshold), maximum, minimum)


def final_similarity(global_scores: Tensor, aggregate_scores: Tensor, weight: float = 0.0) -> Tensor:
    """Fuse global and aggregated scores into the first pseudo-labels (Eq. 7).

    S_final = (S_global + S_agg + lambda |S_global - S_agg|) / 2; lambda is from the paper's supplement.

    Args:
        global_scores: [N, C], of the whole image.
        aggregate_scores: [N, C], S_agg.
        weight: lambda, in [-1, 1]; 0 is the mean of the two, 1 the larger, -1 the smaller.

    Returns:
        [N, C].

    Raises:
        ValueError: the shapes differ, or `weight` is outside [-1, 1].
    """
    require_same_shape(global_scores=global_scores, aggregate_scores=aggregate_scores)
    require_number("weight", weight, -1 <= weight <= 1, "in [-1, 1]")
    # Written over the larger and the smaller, the sum keeps small scores that |g - a| would round away.
    larger = torch.maximum(global_scores, aggregate_scores)
    smaller = torch.minimum(global_scores, aggregate_scores)
    return 0.5 * ((1 + weight) * larger + (1 - weight) * smaller)


def gradient_alignment(
    labels: Tensor, predictions: Tensor, sigma: float = 1.0, step: float = 1.0, head: Head = "sigmoid"
) -> Tensor:
    """Move the pseudo-labels towards the predictions, the unsure ones most (Eq. 8).

    A label is y = sigmoid(t). With L = KL(label || prediction), its latent moves by t - step * psi(y) *
    dL/dy, where psi is the density of a normal distribution with mean 0.5 and deviation sigma.

    With the sigmoid head the new latent is the blend (1 - step * psi) t + step * psi * logit(p). It
    overshoots the prediction where step * psi > 1, which `step` above sigma * sqrt(2 pi) makes possible. At
    sigma 1 psi lies between 0.352 and 0.399, so that sure labels move almost as fast as unsure ones; sigma
    0.2 holds them back.

    Args:
        labels: [N, C], current pseudo-labels y, in [0, 1].
        predictions: [N, C], p, in [0, 1]: probabilities of the classes for the sigmoid head, a distribution
            over them for the softmax head (its scale cancels).
        sigma: deviation of psi, greater than 0.
        step: step of the latent, 0 or greater.
        head: sigmoid: L is the sum over classes of the Bernoulli divergences. softmax: L is the categorical
            divergence of the row of labels, scaled to sum 1.

    Returns:
        New labels [N, C], in [0, 1]; at least float32. Labels and predictions are clamped to [1e-6, 1 - 1e-6]
        first.

    Raises:
        ValueError: the shapes differ, a value is outside [0, 1] or NaN, or an unlawful `sigma`, `step` or
            `head`.

    Example:
        >>> gradient_alignment(torch.tensor([[0.5, 0.2]]), torch.tensor([[0.9, 0.2]]))
        tensor([[0.7061, 0.2000]])
    """
    require_same_shape(labels=labels, predictions=predictions)
    require_unit_range(labels=labels, predictions=predictions)
    require_number("sigma", sigma, sigma > 0, "greater than 0")
    require_number("step", step, step >= 0, "0 or greater")
    if head not in _GRADIENTS:
        raise ValueError(f"head must be one of {sorted(_GRADIENTS)}, but is {head!r}")
    y = at_least_float32(labels).clamp(EPS, 1 - EPS)
    p = at_least_float32(predictions).clamp(EPS, 1 - EPS)
    psi = torch.exp(-0.5 * ((y - 0.5) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    return torch.sigmoid(torch.logit(y) - step * psi * _GRADIENTS[head](y, p))


def bernoulli_kl(labels: Tensor, logits: Tensor, known: Tensor | None = None) -> Tensor:
    """Loss of the sigmoid head: mean over batch and classes of KL(label || sigmoid(logit)).

    Its gradient for the logits is that of binary cross-entropy on soft labels; its minimum is 0.

    Args:
        labels: [B, C], in [0, 1].
        logits: [B, C].
        known: bool [B, C]; entries that are false count neither in the sum nor in the number. None: all are known.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(labels=labels, logits=logits)
    y = at_least_float32(labels)
    cross_entropy = F.binary_cross_entropy_with_logits(at_least_float32(logits), y, reduction="none")
    divergence: Tensor = cross_entropy - torch.special.entr(y) - torch.special.entr(1 - y)
    if known is None:
        return divergence.mean()
    return (divergence * known).sum() / known.sum().clamp(min=1)


def categorical_kl(labels: Tensor, logits: Tensor) -> Tensor:
    """Loss of the softmax head in the reproduction study: mean over the batch of KL(prediction || label).

    Source: Shah and Bhalgat, arXiv 2405.11574. Predictions are softmax(logits); each row of labels is scaled
        to sum 1.

    Args:
        labels: [B, C], in [0, 1], clamped to at least 1e-6.
        logits: [B, C].

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(labels=labels, logits=logits)
    y = at_least_float32(labels).clamp(min=EPS)
    log_q = torch.log(y) - torch.log(y.sum(dim=-1, keepdim=True))
    log_p = torch.log_softmax(at_least_float32(logits), dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


def _bernoulli_gradient(y: Tensor, p: Tensor) -> Tensor:
    """dL/dy of L = sum over classes of KL(Bernoulli(y) || Bernoulli(p))."""
    return torch.logit(y) - torch.logit(p)


def _categorical_gradient(y: Tensor, p: Tensor) -> Tensor:
    """dL/dy of L = KL(q || p) with q = y / sum(y), by row; the scale of p cancels."""
    total = y.sum(dim=-1, keepdim=True)
    q = y / total
    log_ratio = torch.log(q / p)
    return (log_ratio - (q * log_ratio).sum(dim=-1, keepdim=True)) / total


_GRADIENTS = {"sigmoid": _bernoulli_gradient, "softmax": _categorical_gradient}
