"""Standardisation of scores: z-scores that make classes, images, or both, comparable.

CLIP scores some classes higher than others in every image, and some images higher than others for every
class. Taking the z-score over images and then over classes removes both (SPARC, Miller et al., CVPR 2025),
without any label.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Mode = Literal["none", "class", "image", "both"]

_AXES: dict[Mode, tuple[int, ...]] = {"none": (), "class": (0,), "image": (1,), "both": (0, 1)}
_ROUNDING = 1e-12


def standardise(scores: Tensor, mode: Mode) -> Tensor:
    """Replace scores by z-scores, mapped to (0, 1) by the sigmoid.

    The sigmoid, not the normal distribution's function: a rare class that stands out has z-scores of 10 and
    more, which the latter rounds to 1 in float32 from 5.5 on, the sigmoid only from 17 on. And the latent of
    a label, logit(y), is then the z-score itself.

    Args:
        scores: [N, C], finite; N images, C classes.
        mode: none: the scores as they are. class: z-scores over the images, for each class. image: over the
            classes, for each image. both: class, then image.

    Returns:
        float32 [N, C], in (0, 1), in the order of the z-scores; where the scores are all equal, z is 0 and
        the result 0.5. With mode none the input itself.

    Raises:
        ValueError: an unknown `mode`, or `scores` is not a finite matrix.

    Example:
        >>> standardise(torch.tensor([[0.1, 0.5], [0.3, 0.5]]), "class")
        tensor([[0.2689, 0.5000],
                [0.7311, 0.5000]])
    """
    if mode not in _AXES:
        raise ValueError(f"mode must be one of {list(_AXES)}, but is {mode!r}")
    if scores.ndim != 2:
        raise ValueError(f"scores must be a matrix [N, C], but has shape {tuple(scores.shape)}")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores must be finite: one NaN would spread over its whole row or column")
    if mode == "none":
        return scores
    z = scores.double()
    for axis in _AXES[mode]:
        z = _z_scores(z, axis)
    limits = torch.finfo(torch.float32)
    return torch.sigmoid(z).float().clamp(limits.tiny, 1 - limits.eps / 2)


def _z_scores(values: Tensor, axis: int) -> Tensor:
    """(value - mean) / deviation over an axis; 0 where all values are equal."""
    if values.numel() == 0:
        return values
    # Equal up to the rounding of float64, far below that of float32: z-scores of rounding errors would be noise.
    highest, lowest = values.amax(dim=axis, keepdim=True), values.amin(dim=axis, keepdim=True)
    constant = highest - lowest <= _ROUNDING * torch.maximum(highest.abs(), lowest.abs())
    deviation, mean = torch.std_mean(values, dim=axis, correction=0, keepdim=True)
    return torch.where(constant, 0.0, (values - mean) / deviation)
