"""An open-vocabulary student for other programs: asked for any labels, in words.

from clipdistill import OpenStudent

student = OpenStudent.load("cache/scenes/models/mkt", ["red fish", "boat"])
student.predict(["a.jpg"]).scores    # float32 [1, 2]
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from clipdistill.application.student import Scorer, Scores, torch_device
from clipdistill.clip import open_folder
from clipdistill.clip.open_folder import OpenStudent as Folder
from clipdistill.datasets.prompt_names import with_prompts
from clipdistill.datasets.table import ClassName
from clipdistill.errors import ArtifactError, ParamsError
from clipdistill.students import preprocessing, student_yaml, untrained
from clipdistill.students.tokens import as_map

_MOST = 8.0
"""Bound of the logits that scores are made of: a sigmoid of more is 0.9997 at least."""


class OpenStudent(Scorer):
    """A student of open vocabulary with a list of labels: `OpenStudent.load(folder, ["red fish"]).predict("a.jpg")`.

    A score is a label's probability, as the training labels calibrated it, held between 0.0003 and 0.9997: present from
    0.5 on. Its maps are the cosines of the local stream.

    Attributes:
        card: what its folder says of it.
    """

    def __init__(self, student: Folder, labels: Sequence[ClassName], device: torch.device) -> None:
        self.card = student.card
        self._classes = tuple(label.name for label in labels)
        self._scoring = student.scoring
        self._text = student.embed([label.prompt for label in labels]).to(device)
        self._eyes = student.eyes().to(device)
        self._device = device

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], labels: Sequence[str | ClassName] | None = None, device: str = "auto"
    ) -> Self:
        """Load a folder, as the pipeline leaves it in `cache/<dataset>/models/mkt`.

        Args:
            folder: with `open_student.yaml` and `open_student.safetensors`.
            labels: words to score images for; None: those that the student was trained on.
            device: auto (a GPU where there is one), cpu or cuda.

        Raises:
            ArtifactError: the folder holds no whole student of open vocabulary.
            ParamsError: no label, one that the text encoder cannot read, two that read the same; or an unknown device.
        """
        place = Path(folder)
        if reason := untrained.reason(place):
            raise ArtifactError(f"{place} holds no student: {reason}")
        if (place / student_yaml.FILE).is_file():
            raise ParamsError(f"{place} is a classifier of fixed classes: `clipdistill.Student.load` loads it")
        where = torch_device(device)
        student = open_folder.load(place)
        named = _named(student.card.seen if labels is None else labels)
        if student.card.norm == "label" and len(named) < 2:
            raise ParamsError(f"{place} scores labels against one another (mkt.norm label): ask for two at least")
        return cls(student, named, where)

    def __repr__(self) -> str:
        return f"OpenStudent({self.card.model}, {len(self.classes)} labels, {self.image_size} pixels, {self._device})"

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, in column order."""
        return self._classes

    @property
    def thresholds(self) -> npt.NDArray[np.float64]:
        """0.5 for every label."""
        return np.full(len(self.classes), 0.5)

    @property
    def image_size(self) -> int:
        """Side of its input, pixels."""
        return self.card.image_size

    @torch.inference_mode()
    def _forward(self, pixels: Tensor) -> tuple[Scores, Scores]:
        cls, patches = self._eyes(preprocessing.normalise(pixels.to(self._device, non_blocking=True)))
        logits = self._scoring.logits(cls, patches, self._text)
        # Held from 0 and 1, which float32 would round many to: labels would be told apart no more.
        scores = torch.sigmoid(_MOST * F.softsign(logits / _MOST))
        cosines = F.normalize(patches, dim=-1) @ F.normalize(self._text, dim=-1).T
        return scores.cpu().numpy(), as_map(cosines).cpu().numpy()


def _named(labels: Sequence[str | ClassName]) -> list[ClassName]:
    """Labels with how a prompt says them."""
    if isinstance(labels, (str, bytes)) or not isinstance(labels, (Sequence, np.ndarray)) or not len(labels):
        raise ParamsError(f"labels must be a list of at least one, not {type(labels).__name__}")
    if strange := [label for label in labels if not isinstance(label, (str, ClassName))]:
        raise ParamsError(f"a label is a text, but {strange[0]!r} is none")
    named = [label if isinstance(label, ClassName) else ClassName(str(label), str(label)) for label in labels]
    names = [label.name for label in named]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ParamsError(f"the label {twice[0]!r} stands there more than once")
    return with_prompts(names, {label.name: label.prompt for label in named}, {})
