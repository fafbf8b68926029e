"""A trained student in a folder: `student.safetensors`, and `student.yaml` that says how to use it. No pickles."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clipdistill.errors import ArtifactError
from clipdistill.params import StudentParams
from clipdistill.store import file_sha256, write_atomically
from clipdistill.students import classifier, student_yaml
from clipdistill.students.classifier import Student
from clipdistill.students.student_yaml import CURE, FILE, WEIGHTS, Card

_NETWORK = "network"
"""Key in the metadata of the weights: what network, classes and preprocessing they are for (`Card.network`)."""


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
    write_atomically(folder / WEIGHTS, safetensors.torch.save(state, {_NETWORK: card.network}))
    student_yaml.write(folder, card.model_copy(update={"sha256": file_sha256(folder / WEIGHTS)}))


def load(folder: Path) -> tuple[Student, Card]:
    """Read a student.

    Returns:
        The student in evaluation mode on the CPU, and its card.

    Raises:
        ArtifactError: a file is missing, altered or of another version, or the two do not belong together.
    """
    card = student_yaml.read(folder)
    state = _read_weights(folder, card)
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
            f"{folder / WEIGHTS} is no {card.backbone} for {len(card.classes)} classes, as {folder / FILE} says "
            f"(first difference: {differing[0][0]}): {CURE}"
        )
    if broken := [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise ArtifactError(f"{folder / WEIGHTS} holds NaN or infinity ({broken[0]}): {CURE}")
    student.load_state_dict(state, assign=True)
    return student.eval(), card


def _read_weights(folder: Path, card: Card) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    try:
        found = file_sha256(path)
        if found != card.sha256:
            raise ArtifactError(
                f"{path} has SHA-256 {found}, but {folder / FILE} was written for {card.sha256 or 'none'}: {CURE}"
            )
        with safetensors.safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(_NETWORK) != card.network:
                raise ArtifactError(
                    f"{folder / FILE} was altered: its network, classes or preprocessing are not those that "
                    f"{path.name} was written for: {CURE}"
                )
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: {CURE}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): {CURE}") from None


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}
