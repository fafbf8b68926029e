"""Fixed labels, learnt with a weight for each image (CCD)."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from clipdistill.methods import ccd
from clipdistill.students.classifier import Head


class WeightedLabels:
    """Labels that stay as they are while a student learns from them by weighted binary cross-entropy.

    Args:
        weight: float32 [N], in [0, 1].
    """

    head: Head = "sigmoid"
    per_batch = False

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    @property
    def identity(self) -> dict[str, Any]:
        """Name and weights."""
        return {"labels": "fixed, weighted", "weight": hashlib.sha256(self._weight.numpy().tobytes()).hexdigest()}

    def loss(self, labels: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Mean over images and classes of the image's weight times binary cross-entropy."""
        return ccd.label_loss(labels, logits, self._weight.to(logits.device)[rows])

    def due(self, epoch: int) -> bool:  # noqa: ARG002 - the loop asks every method
        """Never."""
        return False

    def refine(self, labels: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """The same labels."""
        return labels
