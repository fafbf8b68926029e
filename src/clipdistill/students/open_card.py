"""What `open_student.yaml` says of an open-vocabulary student: all that a program needs to ask it for any label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from clipdistill.errors import ArtifactError
from clipdistill.params import Fraction, Section, Sha256, StudentSide
from clipdistill.store import fingerprint
from clipdistill.students.student_yaml import (
    CURE,
    Channels,
    Evaluation,
    problems_of,
    read_content,
    write_content,
)

FILE, WEIGHTS = "open_student.yaml", "open_student.safetensors"


class OpenCard(Section):
    """What `open_student.yaml` says."""

    format_version: Literal[1] = Field(1, description="of this file")
    model: str = Field(
        min_length=1, description="open_clip's name of the teacher, whose text encoder is in the weights"
    )
    quick_gelu: bool = Field(description="activation of the teacher")
    backbone: str = Field(min_length=1, description="clip: the teacher's image tower; or a network of timm")
    backbone_weights: str = Field(description="what the training of the image tower started from")
    image_size: StudentSide = Field(description="S, pixels: the whole image is squashed to a square, bilinear")
    mean: Channels[float] = Field(description="of the channels R, G, B, in [0, 1], that the image tower expects")
    std: Channels[Annotated[float, Field(gt=0)]] = Field(description="of the channels R, G, B")
    prompt: str = Field(description="the words around a label, where the tuned context stands")
    tuned: bool = Field(description="whether the context was tuned")
    k: int = Field(ge=1, description="patches a label in the local stream")
    norm: Literal["cosine", "label"] = Field(description="cosine, or over the labels of a call")
    local: Fraction = Field(description="share of the local stream in a score")
    scale: float = Field(gt=0, description="a label's probability is sigmoid(scale (score - shift))")
    shift: float = Field(description="score at which a label is as likely there as not")
    seen: list[str] = Field(min_length=1, description="labels that the training saw")
    provenance: dict[str, Any] = Field(description="what the student was trained from")
    about: dict[str, str] = Field(default_factory=dict, description="method, data set, teacher, license, base_model")
    evaluation: Evaluation | None = Field(None, description="how good it is; empty until it was measured")
    sha256: Sha256 = Field("", description=f"of {WEIGHTS}")

    @model_validator(mode="after")
    def _prompts_labels(self) -> Self:
        if self.prompt.count("{}") != 1:
            raise ValueError("prompt must hold {} exactly once")
        if len(set(self.seen)) < len(self.seen):
            raise ValueError("a label stands twice in seen")
        return self

    @property
    def network(self) -> str:
        """Digest of what embeddings depend on beside the weights, which carry it; the scoring may be edited."""
        return fingerprint(
            self.model_dump(include={"model", "quick_gelu", "backbone", "image_size", "mean", "std", "prompt"})
        )


def read(folder: Path) -> OpenCard:
    """Read the card of a folder.

    Raises:
        ArtifactError: missing, unreadable, or of another version.
    """
    path = folder / FILE
    content = read_content(path)
    try:
        return OpenCard.model_validate(content)
    except ValidationError as error:
        raise ArtifactError(f"{path} is damaged, or of another version ({problems_of(error)}): {CURE}") from None


def write(folder: Path, card: OpenCard) -> None:
    """Write the card of a folder: equal cards give equal bytes.

    Raises:
        ArtifactError: the disk refuses.
    """
    write_content(folder / FILE, card)
