"""Fixed labels, learnt with a weight for each image (CCD)."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from clipdistill.methods import ccd
from clipdistill.training.supervision import FixedLabels


class WeightedLabels(FixedLabels):
    """Labels that stay as they are while a student learns from them by weighted binary cross-entropy.

    Args:
        weight: float32 [N], in [0, 1].
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._digest = hashlib.sha256(weight.numpy().tobytes()).hexdigest()

    @property
    def identity(self) -> dict[str, Any]:
        """Name and weights."""
        return {"labels": "fixed, weighted", "weight": self._digest}

    def loss(self, labels: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Mean over images and classes of the image's weight times binary cross-entropy."""
        # Only the first step moves them.
        self._weight = self._weight.to(logits.device)
        return ccd.label_loss(labels, logits, self._weight[rows])
