"""The open-vocabulary student: an image tower whose image and patches are compared with the embedding of any label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from clipdistill.methods import mkt
from clipdistill.students import tokens
from clipdistill.students.context import Prompts, encode
from clipdistill.students.network import Network
from clipdistill.students.student_yaml import MEAN, STD


@dataclass(frozen=True, slots=True)
class Scoring:
    """How embeddings become scores.

    Attributes:
        k: patches a label.
        norm: cosine, or label as the released code has it.
        local: share of the local stream.
        scale: multiplier of a score: one over the temperature.
        shift: score at which a label is as likely there as not.
    """

    k: int
    norm: mkt.Norm
    local: float
    scale: float
    shift: float = 0.0

    def logits(self, cls: Tensor, patches: Tensor, text: Tensor) -> Tensor:
        """Score labels, float32 [B, L]: 0 where `shift` is."""
        # In fp32 under autocast too: bf16 has three digits, and labels are told apart by the fourth.
        with torch.autocast(cls.device.type, enabled=False):
            scores = mkt.two_stream(cls.float(), patches.float(), text.float(), self.k, self.norm, self.local)
            return self.scale * (scores - self.shift)


class Eyes(nn.Module):
    """An image tower that takes images as all students do, normalised by `preprocessing.normalise`.

    Attributes:
        tower: open_clip's.
        mean: of the channels R, G, B, in [0, 1], that it expects.
        std: of the channels R, G, B.
        trained: number of its upper layers that are trained; the others stay as they are, statistics of their
            batch normalisation included.
    """

    def __init__(self, tower: tokens.Tower, mean: Sequence[float], std: Sequence[float], trained: int = 0) -> None:
        super().__init__()
        self.tower = tower
        self.mean, self.std, self.trained = tuple(mean), tuple(std), trained
        factor, offset = _between((MEAN, STD), (mean, std))
        self.register_buffer("factor", factor, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        layers = tokens.layers(tower)
        for layer in layers[: len(layers) - trained]:
            for parameter in layer:
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed images [B, 3, S, S] as [B, D] and their patches as [B, M, D]."""
        return tokens.token_embeddings(self.tower, images * self.get_buffer("factor") + self.get_buffer("offset"))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self.tower.modules():
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self


def _between(old: tuple[Any, Any], new: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    """Factor and offset [3, 1, 1] from values normalised by (mean, std) `old` to those by `new`."""
    mean, std, other_mean, other_std = (torch.tensor(values, dtype=torch.float64) for values in (*old, *new))
    factor, offset = std / other_std, (mean - other_mean) / other_std
    return factor.float()[:, None, None], offset.float()[:, None, None]


class OpenVocabularyStudent(Network):
    """Stage 1 of MKT: the image tower learns, the embeddings of the labels stay.

    Args:
        eyes: the image tower.
        text: float [L, D], of the labels that are scored.
        scoring: how.
        decay: rate of a layer over that of the layer above it.
        weights: what the tower started from.
    """

    def __init__(self, eyes: Eyes, text: Tensor, scoring: Scoring, decay: float = 1.0, weights: str = "clip") -> None:
        super().__init__()
        self.eyes = eyes
        self.register_buffer("text", text.float(), persistent=False)
        self.scoring, self.columns, self.weights = scoring, len(text), weights
        self._decay = decay

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, L], and the embeddings of the images [B, D]."""
        cls, patches = self.eyes(images)
        return self.scoring.logits(cls, patches, self.get_buffer("text")), cls

    def rates(self, head_factor: float) -> list[tuple[list[nn.Parameter], float]]:
        """The trained layers from the top: the last has the peak rate, each one below `decay` times the one above."""
        upper = tokens.layers(self.eyes.tower)[::-1][: self.eyes.trained]
        return [
            (layer, self._decay**depth * (1.0 if depth else head_factor)) for depth, layer in enumerate(upper) if layer
        ]


class PromptedStudent(Network):
    """Stage 2 of MKT: the context of the labels learns, everything else stays.

    Args:
        eyes: the trained image tower; frozen here.
        model: open_clip's CLIP, whose text encoder it uses; frozen here.
        prompts: of the L labels that are scored.
        context: [K, E], where it starts.
        scoring: how labels are scored.
    """

    def __init__(self, eyes: Eyes, model: nn.Module, prompts: Prompts, context: Tensor, scoring: Scoring) -> None:
        super().__init__()
        for part in (eyes, model):
            part.requires_grad_(False)
        # Not parts of this module: its state is the context alone.
        self._frozen = (eyes.eval(), model.eval())
        self.context = nn.Parameter(context.clone())
        self._prompts, self.scoring = prompts, scoring
        self.columns, self.weights = len(prompts), "clip"

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, L], and the embeddings of the images [B, D]."""
        self._bring(images.device)
        with torch.no_grad():
            cls, patches = self._frozen[0](images)
        return self.scoring.logits(cls, patches, self.text()), cls

    def text(self) -> Tensor:
        """Embeddings of the labels with the context as it is, float32 [L, D]."""
        device = self.context.device
        self._bring(device)
        with torch.autocast(device.type, enabled=False):
            return encode(self._frozen[1], self._prompts.to(device), self.context)

    def rates(self, head_factor: float) -> list[tuple[list[nn.Parameter], float]]:  # noqa: ARG002 - there is no head
        """The context alone."""
        return [([self.context], 1.0)]

    def _bring(self, device: torch.device) -> None:
        """Move the frozen parts to where they are needed."""
        if next(self._frozen[0].parameters()).device != device:
            for part in self._frozen:
                part.to(device)
