"""Update rules, and the course of the learning rate."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from clipdistill.params import RecipeParams
from clipdistill.students.network import Network

Schedule = Literal["constant", "cosine", "one_cycle"]

_MOMENTUM = 0.9

# One cycle (Smith and Topin, arXiv 1708.07120, without its cycle of momentum): the share of the steps that climb, and
# the first and the last rate as shares of the peak.
_CLIMB, _FIRST, _LAST = 0.3, 1 / 25, 1 / 25e4


def parameter_groups(student: Network, recipe: RecipeParams) -> list[dict[str, Any]]:
    """Split the parameters by their rates; biases and norms do not decay.

    Returns:
        Groups for an optimiser; `peak` is the group's highest learning rate.
    """
    groups = []
    for parameters, factor in student.rates(recipe.head_factor):
        for matrices, decay in ((True, recipe.weight_decay), (False, 0.0)):
            members = [parameter for parameter in parameters if (parameter.ndim > 1) == matrices]
            if members:
                peak = recipe.learning_rate * factor
                groups.append({"params": members, "peak": peak, "lr": peak, "weight_decay": decay})
    return groups


def optimiser(student: Network, recipe: RecipeParams) -> torch.optim.Optimizer:
    """Make the optimiser: AdamW, Adam, or SGD with momentum 0.9."""
    groups = parameter_groups(student, recipe)
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=_MOMENTUM, fused=True)
    rule = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return rule(groups, fused=True)


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Share of the peak learning rate.

    Args:
        schedule: constant; cosine: from 1 to 0; one_cycle: from 1/25 up to 1 in three tenths of the steps, then down
            to nearly 0, each way along half a cosine.
        step: from 0.
        steps: of the whole run.

    Returns:
        In [0, 1].
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return _half_cosine(1.0, 0.0, step / steps)
    peak = max(1.0, _CLIMB * steps - 1)
    if step <= peak:
        return _half_cosine(_FIRST, 1.0, step / peak)
    return _half_cosine(1.0, _LAST, (step - peak) / (steps - 1 - peak))


def set_rate(rule: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to a share of its peak; returns the first group's."""
    for group in rule.param_groups:
        group["lr"] = group["peak"] * factor
    return float(rule.param_groups[0]["lr"])


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
