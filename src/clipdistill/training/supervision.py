"""What a method adds to the training loop: its loss, and what becomes of the labels after an epoch."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from clipdistill.methods import cdul
from clipdistill.students.student_yaml import Head


class Supervision(Protocol):
    """A method, as the loop sees it."""

    @property
    def head(self) -> Head:
        """How logits become scores."""

    @property
    def identity(self) -> dict[str, Any]:
        """Name and parameters, JSON values."""

    def loss(self, labels: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of a batch: labels [B, C] in [0, 1], logits [B, C], and the images' rows, int64 [B]."""

    def further_loss(self, images: Tensor, seen: Tensor, rows: Tensor) -> Tensor | None:
        """What else is learnt, from a batch [B, 3, S, S], what the network saw of it, and the rows; None: nothing."""

    @property
    def per_batch(self) -> bool:
        """Whether the labels change batch by batch within an epoch, not all at once after it."""

    def due(self, epoch: int) -> bool:
        """Whether the labels change after this epoch (from 1), or in it where they change by batch."""

    def refine(self, labels: Tensor, scores: Tensor) -> Tensor:
        """New labels from the present ones and the student's scores of the same images, all N or a batch."""


class FixedLabels:
    """Labels that stay as they are, learnt with a sigmoid head; negative ones are unknown and left out."""

    head: Head = "sigmoid"
    per_batch = False

    @property
    def identity(self) -> dict[str, Any]:
        """Name and parameters."""
        return {"labels": "fixed"}

    def loss(self, labels: Tensor, logits: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002 - all images weigh alike
        """Bernoulli KL(label || prediction): binary cross-entropy less a constant."""
        # Asking whether all are known would wait for the GPU.
        return cdul.bernoulli_kl(labels.clamp(min=0), logits, labels >= 0)

    def further_loss(self, images: Tensor, seen: Tensor, rows: Tensor) -> Tensor | None:  # noqa: ARG002
        """Nothing."""
        return None

    def due(self, epoch: int) -> bool:  # noqa: ARG002 - the loop asks every method
        """Never."""
        return False

    def refine(self, labels: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """The same labels."""
        return labels
