"""Which network a training makes, apart from how it is taught."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from clipdistill.params import StudentParams
from clipdistill.students import classifier
from clipdistill.students.network import Network


class Design(Protocol):
    """A kind of network, as the loop sees it."""

    @property
    def image_size(self) -> int:
        """Side of the network's input, pixels."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that the network depends on before its training, JSON values."""

    def build(self, columns: int, seed: int) -> Network:
        """Make one with a logit for each of `columns`, in training mode, on the CPU."""


@dataclass(frozen=True, slots=True)
class ClassifierDesign:
    """The plain classifier.

    Attributes:
        params: backbone, its first weights, its input.
        boost: factor of the positive parts of its maps; 1: none.
    """

    params: StudentParams
    boost: float = 1.0

    @property
    def image_size(self) -> int:
        """Side of its input, pixels."""
        return self.params.image_size

    @property
    def identity(self) -> dict[str, Any]:
        """Its parameters; the boost is the regime's."""
        return self.params.model_dump()

    def build(self, columns: int, seed: int) -> classifier.Student:
        """Make one (`classifier.build`)."""
        return classifier.build(self.params, columns, seed, self.boost)
