"""Checks that the methods make of their arguments; each raises a ValueError that names the argument."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Raise half precision to float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def require_number(name: str, value: float, lawful: bool, allowed: str) -> None:
    """Refuse a number that is not finite or not `lawful`; `allowed` says what would be."""
    if not (lawful and math.isfinite(value)):
        raise ValueError(f"{name} must be {allowed}, but is {value}")


def require_same_shape(**tensors: Tensor) -> None:
    """Refuse tensors of different shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("shapes differ: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))


def require_unit_range(**tensors: Tensor) -> None:
    """Refuse values outside [0, 1], and NaN."""
    for name, tensor in tensors.items():
        if not bool(((tensor >= 0) & (tensor <= 1)).all()):
            raise ValueError(f"{name} must lie in [0, 1] without NaN")


def require_non_negative(**tensors: Tensor) -> None:
    """Refuse values below 0, infinite ones, and NaN."""
    for name, tensor in tensors.items():
        if not bool(((tensor >= 0) & torch.isfinite(tensor)).all()):
            raise ValueError(f"{name} must be finite and 0 or greater")


def require_floating(name: str, tensor: Tensor, shape: str) -> None:
    """Refuse a tensor that is not floating point or lacks an axis of `shape`, such as "[N, C]".

    The first axis may be empty, the others may not.
    """
    if tensor.ndim != shape.count(",") + 1 or not tensor.is_floating_point() or 0 in tensor.shape[1:]:
        raise ValueError(f"{name} must be floating point {shape}, but is {tensor.dtype} {tuple(tensor.shape)}")


def view_counts(view_scores: Tensor, offset: Tensor, allow_empty: bool = False) -> Tensor:
    """Count the views of each image, after checking that the offsets cut the rows into images.

    Args:
        view_scores: [V, C], floating point.
        offset: int64 [N + 1]; the views of image i are the rows offset[i]:offset[i + 1].
        allow_empty: whether an image may have no views.

    Returns:
        int64 [N].

    Raises:
        ValueError: a wrong shape or type, or offsets that do not cover the rows in order.
    """
    if view_scores.ndim != 2 or not view_scores.is_floating_point():
        found = f"{view_scores.dtype} {tuple(view_scores.shape)}"
        raise ValueError(f"view_scores must be floating point [V, C], but is {found}")
    return counts_of_views(offset, len(view_scores), allow_empty)


def counts_of_views(offset: Tensor, views: int, allow_empty: bool = False) -> Tensor:
    """Count the views of each image as `view_counts`, where V = `views` rows are not at hand all at once."""
    if offset.ndim != 1 or offset.dtype != torch.int64 or len(offset) < 1:
        raise ValueError(f"offset must be int64 [N + 1], but is {offset.dtype} {tuple(offset.shape)}")
    if offset[0] != 0 or offset[-1] != views:
        raise ValueError(
            f"offset must run from 0 to the number of views, {views}, "
            f"but runs from {int(offset[0])} to {int(offset[-1])}"
        )
    counts = offset.diff()
    wrong = counts < (0 if allow_empty else 1)
    if bool(wrong.any()):
        row = f"image row {int(wrong.nonzero()[0, 0])}"
        raise ValueError(f"offset decreases over {row}" if allow_empty else f"offset leaves {row} without views")
    return counts
