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
    sha256 = write_weights(folder / WEIGHTS, state, card.network)
    student_yaml.write(folder, card.model_copy(update={"sha256": sha256}))


def load(folder: Path) -> tuple[Student, Card]:
    """Read a student.

    Returns:
        The student in evaluation mode on the CPU, and its card.

    Raises:
        ArtifactError: a file is missing, altered or of another version, or the two do not belong together.
    """
    card = student_yaml.read(folder)
    what = "its network, classes or preprocessing are not those that"
    state = read_weights(folder / WEIGHTS, folder / FILE, card.sha256, card.network, what)
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


def read_weights(path: Path, card: Path, sha256: str, network: str, what: str) -> dict[str, Tensor]:
    """Read the weights of a student of any kind.

    Args:
        path: of the weights.
        card: file of the card, which has told the following.
        sha256: of the weights.
        network: what of the card they were written for.
        what: how an error says that they were not: "... {weights} was written for".

    Raises:
        ArtifactError: missing, unreadable, or of another card.
    """
    try:
        found = file_sha256(path)
        if found != sha256:
            raise ArtifactError(f"{path} has SHA-256 {found}, but {card} was written for {sha256 or 'none'}: {CURE}")
        with safetensors.safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(_NETWORK) != network:
                raise ArtifactError(f"{card} was altered: {what} {path.name} was written for: {CURE}")
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: {CURE}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): {CURE}") from None


def write_weights(path: Path, tensors: dict[str, Tensor], network: str) -> str:
    """Write the weights of a student of any kind, and what of its card they are for; returns their SHA-256.

    Raises:
        ArtifactError: the disk refuses.
    """
    write_atomically(path, safetensors.torch.save(tensors, {_NETWORK: network}))
    return file_sha256(path)


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}
