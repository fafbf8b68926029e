"""What a training may have besides labels and a loss on them: a beginning, a second view, and a stopping rule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipdistill.errors import ArtifactError
from clipdistill.evaluation.metrics import mean_average_precision
from clipdistill.methods import ccd
from clipdistill.students import model_folder, student_yaml
from clipdistill.students.network import Network


@dataclass(frozen=True, slots=True)
class Regime:
    """The default has none of it: random or published first weights, one view, the last epoch's student.

    Attributes:
        start: folder of the student whose weights are gone on from; None: those of `train.student`.
        boost: factor of the positive parts of the student's maps; 1: none.
        agreement: weight of the loss between an image and its second view; 0: there is no second view.
        jitter: strength of the second view's colour jitter.
        positive_at: the stopping rule's label from which a class counts as present; None: no rule, and the student is
            that of the last epoch.
    """

    start: Path | None = None
    boost: float = 1.0
    agreement: float = 0.0
    jitter: float = 0.0
    positive_at: float | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Parameters, and the student gone on from, as JSON values."""
        start = None if self.start is None else student_yaml.read(self.start).sha256
        others = {name: getattr(self, name) for name in ("boost", "agreement", "jitter", "positive_at")}
        return {"start": start, **others}

    def begin(self, student: Network) -> None:
        """Give a new student the weights that are gone on from, if there are any.

        Raises:
            ArtifactError: the folder holds no whole student, or one that does not fit.
        """
        if self.start is None:
            return
        earlier, _ = model_folder.load(self.start)
        try:
            student.load_state_dict(earlier.state_dict())
        except RuntimeError:
            raise ArtifactError(
                f"{self.start} holds another network than train.student asks for: run `dvc repro`"
            ) from None
        student.weights = earlier.weights


def train_map(scores: Tensor, labels: Tensor, positive_at: float) -> float:
    """How well the scores of an epoch [N, C] find the labels [N, C] that are surely present, mAP in percent.

    The stopping rule's figure: it knows no ground truth. NaN where no label reaches `positive_at`.
    """
    return mean_average_precision(scores.numpy(), (labels >= positive_at).to(torch.int8).numpy())[0]


def is_chosen(train_maps: list[float]) -> bool:
    """Whether the stopping rule, as far as it can tell, takes the last of these epochs."""
    return ccd.curvature_epoch(train_maps) == len(train_maps) - 1
