"""CDUL's gradient-alignment training (Eq. 8): the student learns from the labels, then moves them.

Source: Abdelfattah et al., ICCV 2023, arXiv 2307.16634. The mathematics is in `clipdistill.methods.cdul`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clipdistill.methods import cdul
from clipdistill.params import CdulTrainParams
from clipdistill.students.student_yaml import Head

# The reproduction study averages the divergence over batches of 8, and so moves a label by an eighth.
_STUDY_STEP = 1 / 8


class GradientAlignment:
    """By default the labels of all images are refined at once, from the scores of one clean pass.

    The variant `reproduction` is what the reproduction study (arXiv 2405.11574) runs: a softmax head, KL(prediction ||
    label) to train the student, KL(label || prediction) to refine the labels, batch by batch while the student learns,
    from the very scores of the training step. Those come from augmented images and from batch normalisation in
    training mode, and so the labels depend on the batches; the default has none of that.

    Args:
        params: variant, schedule, sigma and step.
    """

    def __init__(self, params: CdulTrainParams) -> None:
        self._params = params
        self._study = params.variant == "reproduction"

    @property
    def per_batch(self) -> bool:
        """Whether labels move within an epoch, each batch's after its own step."""
        return self._study

    @property
    def head(self) -> Head:
        """How logits become scores."""
        return "softmax" if self._study else "sigmoid"

    @property
    def identity(self) -> dict[str, Any]:
        """Name and parameters."""
        return {"labels": "gradient alignment", **self._params.model_dump()}

    def loss(self, labels: Tensor, logits: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002 - all images weigh alike
        """Step (a): the student learns, the labels stay."""
        return cdul.categorical_kl(labels, logits) if self._study else cdul.bernoulli_kl(labels, logits)

    def further_loss(self, images: Tensor, seen: Tensor, rows: Tensor) -> Tensor | None:  # noqa: ARG002
        """Nothing."""
        return None

    def due(self, epoch: int) -> bool:
        """Whether the labels are refined in or after this epoch (from 1): every `update_every` after the warm-up."""
        after = epoch - self._params.warmup
        return after > 0 and after % self._params.update_every == 0

    def refine(self, labels: Tensor, scores: Tensor) -> Tensor:
        """Step (b): the labels move, the student stays.

        Args:
            labels: [N, C], in [0, 1].
            scores: [N, C], in [0, 1].

        Returns:
            [N, C], in [0, 1].
        """
        step = self._params.step * (_STUDY_STEP if self._study else 1)
        return cdul.gradient_alignment(labels, scores, self._params.sigma, step, self.head)
