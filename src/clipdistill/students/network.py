"""What the training loop and prediction know of any student."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """A student: images to a logit for each of C columns.

    Attributes:
        columns: C.
        weights: what it started from.
    """

    columns: int
    weights: str

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Look at a batch.

        Args:
            images: float [B, 3, S, S], normalised as `preprocessing.normalise` does.

        Returns:
            Logits float32 [B, C], and what the network saw on its way to them, B first.
        """

    @abstractmethod
    def rates(self, head_factor: float) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters that are trained, each once, and their share of the peak learning rate.

        Args:
            head_factor: rate of the head over that of what is below it.
        """
