"""What `student.yaml` says of a trained student: all that a program, or a model card, needs to know of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from clipdistill import yaml_text
from clipdistill.errors import ArtifactError
from clipdistill.params import Fraction, Section, Sha256, StudentParams, StudentSide
from clipdistill.store import fingerprint, write_atomically

if TYPE_CHECKING:
    from clipdistill.students.classifier import Student

FORMAT_VERSION = 1
FILE, WEIGHTS = "student.yaml", "student.safetensors"
CURE = "copy the folder again; in a checkout of the pipeline `dvc pull` or `dvc repro` brings it"

Head = Literal["sigmoid", "softmax"]
_T = TypeVar("_T")
Channels = Annotated[list[_T], Field(min_length=3, max_length=3)]

# ImageNet's channel means and deviations, as torchvision's weights expect them; RGB in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Preprocessing(Section):
    """What the student takes: float [B, 3, S, S]."""

    image_size: StudentSide = Field(description="S, pixels")
    resize: Literal["squash"] = Field("squash", description="the whole image to a square")
    interpolation: Literal["bilinear"] = Field("bilinear", description="with a filter against aliasing")
    mean: Channels[float] = Field(list(MEAN), description="of the channels R, G, B, in [0, 1]")
    std: Channels[Annotated[float, Field(gt=0)]] = Field(list(STD), description="of the channels R, G, B")


class Evaluation(Section):
    """How good a student was found to be."""

    dataset: str = Field(description="data set whose ground truth it was")
    split: str = Field(description="of the data set")
    images: int = Field(ge=0, description="number of images with ground truth")
    chose_thresholds: bool = Field(description="whether the same images chose the thresholds: F1 is then a little high")
    figures: dict[str, float | None] = Field(description="percent, by name; empty where there was no ground truth")


class Card(Section):
    """What `student.yaml` says."""

    format_version: Literal[1] = Field(1, description="of this file")
    backbone: str = Field(min_length=1, description="torchvision's name")
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
    about: dict[str, str] = Field(
        default_factory=dict, description="method, data set, teacher, license, base_model: what a model hub asks"
    )
    evaluation: Evaluation | None = Field(None, description="how good it is; empty until it was measured")
    sha256: Sha256 = Field("", description=f"of {WEIGHTS}")

    @model_validator(mode="after")
    def _one_threshold_a_class(self) -> Self:
        if len(self.thresholds) != len(self.classes):
            raise ValueError(f"{len(self.thresholds)} thresholds for {len(self.classes)} classes")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class stands there twice")
        return self

    @property
    def network(self) -> str:
        """Digest of what scores depend on beside the weights, which carry it: thresholds may be edited, this not."""
        parts = {"backbone", "output_stride", "head", "boost", "preprocessing", "classes"}
        return fingerprint(self.model_dump(include=parts))

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


def read(folder: Path) -> Card:
    """Read the `student.yaml` of a model folder.

    Raises:
        ArtifactError: missing, unreadable, or of another version.
    """
    path = folder / FILE
    content = read_content(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}: {CURE}")
    try:
        return Card.model_validate(content)
    except ValidationError as error:
        raise ArtifactError(f"{path} is damaged ({problems_of(error)}): {CURE}") from None


def write(folder: Path, card: Card) -> None:
    """Write the `student.yaml` of a model folder: equal cards give equal bytes.

    Raises:
        ArtifactError: the disk refuses.
    """
    write_content(folder / FILE, card)


def read_content(path: Path) -> Any:  # noqa: ANN401 - any tree of plain values
    """Read the card of a student of any kind, as its file has it.

    Raises:
        ArtifactError: missing or unreadable.
    """
    try:
        return yaml_text.read(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: {CURE}") from None
    except (OSError, yaml.YAMLError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): {CURE}") from None


def problems_of(error: ValidationError) -> str:
    """What is wrong with a card, by key."""
    return "; ".join(f"{'.'.join(map(str, p['loc'])) or 'card'}: {p['msg']}" for p in error.errors())


def write_content(path: Path, card: Section) -> None:
    """Write the card of a student of any kind: equal cards give equal bytes.

    Raises:
        ArtifactError: the disk refuses.
    """
    text = yaml.safe_dump(card.model_dump(), sort_keys=False, allow_unicode=True, width=110)
    write_atomically(path, text.encode())
