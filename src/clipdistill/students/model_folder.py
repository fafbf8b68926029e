"""A trained student in a folder: `student.safetensors`, `student.yaml` that says how to use it, and a model card.

No pickles. `README.md` is for people and model hubs and says nothing that is not in `student.yaml`: nothing reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import safetensors
import safetensors.torch
import torch
import yaml
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from clipdistill.errors import ArtifactError
from clipdistill.params import Fraction, Section, Sha256, StudentParams
from clipdistill.store import file_sha256, write_atomically
from clipdistill.students import classifier, model_card, preprocessing
from clipdistill.students.classifier import Head, Student

FORMAT_VERSION = 1
WEIGHTS, CARD = "student.safetensors", "student.yaml"

_CURE = "pull the folder again with `dvc pull`, or run `dvc repro`"


class Preprocessing(Section):
    """What the student takes: float [B, 3, S, S]."""

    image_size: int = Field(gt=0, description="S, pixels")
    resize: Literal["squash"] = Field("squash", description="the whole image to a square")
    interpolation: Literal["bilinear"] = Field("bilinear", description="with a filter against aliasing")
    mean: list[float] = Field(list(preprocessing.MEAN), description="of the channels R, G, B, in [0, 1]")
    std: list[float] = Field(list(preprocessing.STD), description="of the channels R, G, B")


class Card(Section):
    """What `student.yaml` says."""

    format_version: Literal[1] = Field(1, description="of this file")
    backbone: str = Field(description="torchvision's name")
    backbone_weights: str = Field(description="what the training started from")
    output_stride: Literal[8, 16, 32] = Field(description="pixels a cell of the activation map")
    head: Head = Field(description="sigmoid: each class by itself; softmax: the classes compete")
    boost: float = Field(1.0, gt=0, description="factor of the positive parts of the activation map; 1: none")
    preprocessing: Preprocessing = Field(description="from an image to the student's input")
    classes: list[str] = Field(min_length=1, description="in column order")
    thresholds: list[Fraction] = Field(description="score from which a class counts as predicted, in column order")
    calibration: dict[str, Any] = Field(
        default_factory=dict, description="how the thresholds were chosen; empty: 0.5 for every class"
    )
    provenance: dict[str, Any] = Field(description="what the student was trained from")
    sha256: Sha256 = Field("", description=f"of {WEIGHTS}")

    @model_validator(mode="after")
    def _one_threshold_a_class(self) -> Self:
        if len(self.thresholds) != len(self.classes):
            raise ValueError(f"{len(self.thresholds)} thresholds for {len(self.classes)} classes")
        return self

    @classmethod
    def of(
        cls,
        student: Student,
        params: StudentParams,
        head: Head,
        classes: list[str],
        provenance: dict[str, Any],
        thresholds: list[float] | None = None,
        calibration: dict[str, Any] | None = None,
    ) -> Self:
        """Describe a student; without `thresholds` every class has 0.5."""
        return cls(
            backbone=params.backbone,
            backbone_weights=student.weights,
            output_stride=params.output_stride,
            head=head,
            boost=student.boost,
            preprocessing=Preprocessing(image_size=params.image_size),
            classes=classes,
            thresholds=thresholds or [0.5] * len(classes),
            calibration=calibration or {},
            provenance=provenance,
        )


def save(folder: Path, student: Student, card: Card) -> None:
    """Write a student: equal weights and card give equal bytes.

    The card is written last and holds the hash of the weights, so that a folder never holds half a student unnoticed.

    Args:
        folder: made where it is missing.
        student: its weights are taken.
        card: its `sha256` is filled in.

    Raises:
        ArtifactError: the disk refuses.
    """
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in student.state_dict().items()}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(state))
    filled = card.model_copy(update={"sha256": file_sha256(folder / WEIGHTS)})
    write_atomically(folder / model_card.FILE, model_card.render(filled.model_dump()).encode())
    text = yaml.safe_dump(filled.model_dump(), sort_keys=False, allow_unicode=True, width=110)
    write_atomically(folder / CARD, text.encode())


def load(folder: Path) -> tuple[Student, Card]:
    """Read a student.

    Returns:
        The student in evaluation mode on the CPU, and its card.

    Raises:
        ArtifactError: a file is missing, altered or of another version, or the two do not belong together.
    """
    card = read_card(folder)
    state = _read_weights(folder, card.sha256)
    params = StudentParams(
        backbone=card.backbone, image_size=card.preprocessing.image_size, output_stride=card.output_stride
    )
    # Without memory: the first weights would cost seconds, and none of them stays.
    with torch.device("meta"):
        student = classifier.build(params, len(card.classes), seed=0, boost=card.boost)
    student.weights = card.backbone_weights
    wanted = student.state_dict()
    if differing := sorted(_shapes(state).items() ^ _shapes(wanted).items()):
        raise ArtifactError(
            f"{folder / WEIGHTS} is no {card.backbone} for {len(card.classes)} classes, as {folder / CARD} says "
            f"(first difference: {differing[0][0]}): {_CURE}"
        )
    student.load_state_dict(state, assign=True)
    return student.eval(), card


def read_card(folder: Path) -> Card:
    """Read `student.yaml` alone.

    Raises:
        ArtifactError: missing, unreadable, or of another version.
    """
    path = folder / CARD
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: {_CURE}") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): {_CURE}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}: {_CURE}")
    try:
        return Card.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'card'}: {p['msg']}" for p in error.errors())
        raise ArtifactError(f"{path} is damaged ({problems}): {_CURE}") from None


def _read_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    try:
        found = file_sha256(path)
        if found != sha256:
            raise ArtifactError(
                f"{path} has SHA-256 {found}, but {folder / CARD} was written for {sha256 or 'none'}: {_CURE}"
            )
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: {_CURE}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): {_CURE}") from None


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}
