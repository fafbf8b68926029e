"""The state of a training run, written after every epoch: a killed run goes on from the last one.

Tensors and plain values alone: it is read without pickle's powers. Every file ends with its SHA-256: neither PyTorch
nor NumPy notices a byte that a disk has changed.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipdistill.errors import ArtifactError
from clipdistill.store import write_atomically

FILE = "checkpoint.pt"

_SUM = hashlib.sha256().digest_size

Matrix = npt.NDArray[np.float32]
Kind = Literal["labels", "scores"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that the rest of the run depends on.

    Attributes:
        epoch: finished ones.
        student: its `state_dict`.
        optimiser: its `state_dict`.
        labels: float32 [N, C], after the last refinement.
        curves: one row an epoch.
        chosen: `state_dict` of the student after the epoch that the stopping rule chooses so far; None without a rule.
    """

    epoch: int
    student: dict[str, Any]
    optimiser: dict[str, Any]
    labels: Tensor
    curves: list[dict[str, float]]
    chosen: dict[str, Any] | None

    def write(self, folder: Path) -> None:
        """Replace the folder's checkpoint.

        Raises:
            ArtifactError: the disk refuses; the one before is still whole.
        """
        buffer = io.BytesIO()
        torch.save({field: getattr(self, field) for field in self.__slots__}, buffer)
        write_atomically(folder / FILE, _with_sum(buffer.getvalue()))

    @classmethod
    def read(cls, folder: Path) -> Checkpoint | None:
        """Read the folder's checkpoint, onto the CPU; None without one.

        Raises:
            ArtifactError: it is damaged.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            content = io.BytesIO(_without_sum(path))
            return cls(**torch.load(content, map_location="cpu", weights_only=True))
        # What damaged files raise in torch is no short list.
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ArtifactError(f"{path} is damaged ({reason}): remove {folder} and train again") from None


def write_state(folder: Path, kind: Kind, epoch: int, matrix: Matrix) -> None:
    """Keep a matrix [N, C] as it is after an epoch (0: before the first)."""
    write_array(_file(folder, kind, epoch), matrix)


def read_states(folder: Path, kind: Kind, epochs: list[int]) -> Matrix:
    """The matrices after each of some epochs, [U, N, C].

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    states = [read_array(_file(folder, kind, epoch), folder) for epoch in epochs]
    if len({state.shape for state in states}) != 1:
        raise ArtifactError(f"{folder / kind} holds matrices of different shapes: remove {folder} and train again")
    return np.stack(states)


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array and its checksum."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomically(path, _with_sum(buffer.getvalue()))


def read_array(path: Path, folder: Path) -> npt.NDArray[Any]:
    """Read what `write_array` wrote.

    Args:
        path: file.
        folder: of the run, which an error says to remove.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        array: npt.NDArray[Any] = np.load(io.BytesIO(_without_sum(path)), allow_pickle=False)
    # NumPy reads the header with Python's tokenizer: its errors are no short list.
    except Exception as error:
        raise ArtifactError(f"{path} cannot be read ({error}): remove {folder} and train again") from None
    return array


def _with_sum(content: bytes) -> bytes:
    """Content and its SHA-256, for a file."""
    return content + hashlib.sha256(content).digest()


def _without_sum(path: Path) -> bytes:
    """Content of a file that `_with_sum` made.

    Raises:
        ValueError: it was altered.
    """
    whole = path.read_bytes()
    content, digest = whole[:-_SUM], whole[-_SUM:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum differs")
    return content


def _file(folder: Path, kind: Kind, epoch: int) -> Path:
    return folder / kind / f"{epoch:05d}.npy"
