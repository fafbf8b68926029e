"""An open-vocabulary student in a folder: image tower, the teacher's text encoder, and the context of its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from clipdistill.clip import teacher
from clipdistill.clip.teacher import ClipModel
from clipdistill.errors import ArtifactError, ParamsError
from clipdistill.students import context, open_card, tokens
from clipdistill.students.context import Prompts
from clipdistill.students.model_folder import read_weights, write_weights
from clipdistill.students.open_card import FILE, WEIGHTS, OpenCard
from clipdistill.students.open_vocabulary import Eyes, Scoring
from clipdistill.students.student_yaml import CURE

_CONTEXT, _MODEL = "context", "model."


@dataclass(frozen=True, slots=True)
class OpenStudent:
    """What a folder holds.

    Attributes:
        model: open_clip's CLIP whose image tower is the student's, in evaluation mode, on the CPU.
        context: float32 [K, E], of its prompts.
        card: what it is.
    """

    model: ClipModel
    context: Tensor
    card: OpenCard

    @property
    def scoring(self) -> Scoring:
        """How its embeddings become scores."""
        card = self.card
        return Scoring(card.k, card.norm, card.local, card.scale, card.shift)

    def eyes(self) -> Eyes:
        """Its image tower, frozen."""
        return Eyes(self.model.visual, self.card.mean, self.card.std).eval()

    def tokenise(self, names: Sequence[str]) -> Prompts:
        """Labels in its prompt.

        Raises:
            ParamsError: a label that the text encoder cannot read, or two that read the same.
        """
        tokenizer, longest = open_clip.get_tokenizer(self.card.model), context.context_length(self.model)
        return context.tokenise(tokenizer, self.card.prompt, names, longest)

    @torch.no_grad()
    def embed(self, names: Sequence[str]) -> Tensor:
        """Embed any labels with its own context: float32 [L, D], not of unit norm.

        Raises:
            ParamsError: as `tokenise`.
        """
        return context.encode(self.model, self.tokenise(names), self.context).float()


def timm_tower(name: str, width: int, size: int, pretrained: bool = False) -> TimmModel:
    """Make an image tower of timm's network with a linear projection.

    Args:
        name: timm's.
        width: D, of the embedding.
        size: S, pixels.
        pretrained: fetch timm's weights.

    Raises:
        ParamsError: timm has no such network, or it takes no such images; or the weights cannot be fetched.
    """
    try:
        # Of timm's own: a name on a hub would be fetched, and a folder from somewhere may hold any name.
        if not timm.is_model(name):
            raise ValueError("timm knows no such network")
        tower = TimmModel(name, width, size, pool="", proj="linear", pretrained=pretrained)
        if hasattr(tower.trunk, "set_input_size"):
            tower.set_input_size(size)
        # What a network does with images of a size shows only when it gets one.
        with torch.no_grad():
            tokens.token_embeddings(tower.eval(), torch.zeros(1, 3, size, size))
    # What timm and its hub raise is no short list.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ParamsError(
            f"mkt.student.backbone: {name} cannot be had from timm for {size} pixels ({reason})"
        ) from None
    return tower.train()


def save(folder: Path, student: OpenStudent) -> None:
    """Write a student: equal weights and card give equal bytes. The card is last, and holds the hash of the weights.

    Raises:
        ArtifactError: the disk refuses.
    """
    state = {f"{_MODEL}{key}": value for key, value in student.model.state_dict().items()}
    state[_CONTEXT] = student.context
    # A copy each: tensors that share memory are refused.
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    sha256 = write_weights(folder / WEIGHTS, tensors, student.card.network)
    open_card.write(folder, student.card.model_copy(update={"sha256": sha256}))


def load(folder: Path) -> OpenStudent:
    """Read a student.

    Raises:
        ArtifactError: a file is missing, altered or of another version, or the two do not belong together.
    """
    card = open_card.read(folder)
    state = read_weights(folder / WEIGHTS, folder / FILE, card.sha256, card.network, "it is not what")
    words = state.pop(_CONTEXT, None)
    try:
        model = _empty(card)
        model.load_state_dict({key.removeprefix(_MODEL): value for key, value in state.items()})
    except (RuntimeError, ParamsError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"{folder / WEIGHTS} is no {card.model}, as {FILE} says ({reason}): {CURE}") from None
    if words is None or words.ndim != 2:
        raise ArtifactError(f"{folder / WEIGHTS} has no context of prompts: {CURE}")
    if not all(torch.isfinite(value).all() for value in (words, *state.values())):
        raise ArtifactError(f"{folder / WEIGHTS} holds NaN or infinity: {CURE}")
    return OpenStudent(model.eval().requires_grad_(False), words, card)


def _empty(card: OpenCard) -> ClipModel:
    teacher.register_architectures()
    # See `timm_tower`: nor is a hub asked, or another folder read.
    if card.model not in open_clip.list_models():
        raise ParamsError("open_clip knows no such architecture")
    model = teacher.create(card.model, card.quick_gelu)
    if card.backbone != "clip":
        model.visual = timm_tower(card.backbone, embedding_width(model), card.image_size)
    return model


def embedding_width(model: Any) -> int:  # noqa: ANN401 - open_clip ships no types
    """Width D of the embedding that images and texts share."""
    projection = getattr(getattr(model, "text", model), "text_projection", None)
    if projection is None:
        raise ParamsError("clip.model: a teacher without a projection of its texts has no width to learn for")
    return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])
