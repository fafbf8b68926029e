"""A student for other programs: loaded in one line, asked in another.

from clipdistill import Student

prediction = Student.load("cache/scenes/models/cdul").predict(["a.jpg", "b.jpg"])
prediction.names     # [["boat", "tree"], []]
prediction.scores    # float32 [2, C]
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from clipdistill import distributed
from clipdistill.application.image_files import ImageLike, batches, open_image
from clipdistill.datasets.images import UnreadableImageError
from clipdistill.datasets.table import ClassName
from clipdistill.errors import ArtifactError, ParamsError
from clipdistill.evaluation.thresholds import DEFAULT
from clipdistill.students import classifier, model_folder, open_card, preprocessing, student_yaml, untrained

BATCH = 64
"""Images a forward pass, where nothing else is asked for."""

Scores = npt.NDArray[np.float32]
Source = TypeVar("Source")

# What can be run through, and is one image all the same; bytes are none, and are refused as one.
_ONE = (str, bytes, os.PathLike, Image.Image, np.ndarray)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a student says of N images.

    Attributes:
        classes: C names, in column order.
        scores: float32 [N, C], in [0, 1].
        thresholds: float64 [C]; a class is present where its score is this high or higher.
    """

    classes: tuple[str, ...]
    scores: Scores
    thresholds: npt.NDArray[np.float64]

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which classes are present, [N, C]."""
        return self.scores >= self.thresholds

    @property
    def names(self) -> list[list[str]]:
        """Names of the classes present in each image, the highest score first; possibly none."""
        return [[name for name, _ in found] for found in self.ranked()]

    def ranked(self, top_k: int | None = None) -> list[list[tuple[str, float]]]:
        """Classes of each image with their scores, the highest first; of equal scores the first class first.

        Args:
            top_k: so many classes an image; None: those that are present.

        Raises:
            ParamsError: `top_k` is below 1.
        """
        if top_k is not None and top_k < 1:
            raise ParamsError(f"top_k must be at least 1, but is {top_k}")
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :top_k]
        kept = self.present if top_k is None else np.ones_like(self.present)
        return [
            [(self.classes[column], float(self.scores[row, column])) for column in columns if kept[row, column]]
            for row, columns in enumerate(order)
        ]


class Scorer(ABC):
    """A student of any kind that is asked for scores: what asking it has in common.

    The arithmetic is float32, whatever the student was trained in: scores are the same on every machine to about six
    digits.
    """

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of what is scored, in column order."""

    @property
    @abstractmethod
    def thresholds(self) -> npt.NDArray[np.float64]:
        """Score from which a class is present, float64 [C]."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side of its input, pixels."""

    @property
    def unchosen(self) -> tuple[str, ...]:
        """Names of the classes whose thresholds were to be chosen, and stayed as they were: the labels told none."""
        return ()

    @abstractmethod
    def _forward(self, pixels: Tensor) -> tuple[Scores, Scores]:
        """Scores float32 [B, C] in [0, 1], and maps float32 [B, C, h, w], of pixels uint8 [B, 3, S, S]."""

    def predict(
        self, images: ImageLike | Iterable[ImageLike], batch_size: int = BATCH, workers: int | None = None
    ) -> Prediction:
        """Score images.

        Args:
            images: one, or N of them: paths, PIL images, or arrays uint8 [H, W, 3]; or one array uint8 [N, H, W, 3].
            batch_size: images a forward pass.
            workers: threads that decode; None: one a core.

        Raises:
            UnreadableImageError: a file is missing or no whole image, or it is something else; the text names it.
            ParamsError: `batch_size` or `workers` is below 1.
        """
        stacked = isinstance(images, np.ndarray) and images.ndim == 4
        one = not stacked and (isinstance(images, _ONE) or not isinstance(images, Iterable))
        sources: list[ImageLike] = [images] if one else list(images)  # type: ignore[list-item, arg-type]
        found: list[Scores] = []
        for _, scores in self.stream(sources, batch_size, distributed.cores() if workers is None else workers):
            if isinstance(scores, UnreadableImageError):
                raise scores
            found.append(scores)
        return self.prediction(np.stack(found) if found else np.empty((0, len(self.classes)), np.float32))

    def stream(
        self,
        sources: Sequence[Source],
        batch_size: int,
        workers: int,
        opened: Callable[[Source], Image.Image] = open_image,  # type: ignore[assignment]
    ) -> Iterator[tuple[Source, Scores | UnreadableImageError]]:
        """Score images one batch after the other, in their order, for as many as there may be.

        Args:
            sources: N images, or what `opened` makes images of.
            batch_size: images a forward pass.
            workers: threads that decode.
            opened: opens one; called in a thread.

        Yields:
            An image and its scores, float32 [C], or what was wrong with it.

        Raises:
            ParamsError: `batch_size` or `workers` is below 1.
        """
        for name, value in (("batch_size", batch_size), ("workers", workers)):
            if value < 1:
                raise ParamsError(f"{name} must be at least 1, but is {value}")
        for batch in batches(sources, opened, self.image_size, batch_size, workers):
            pixels = [read for _, read in batch if not isinstance(read, UnreadableImageError)]
            rows = iter(self.score(torch.from_numpy(np.stack(pixels))) if pixels else ())
            for source, read in batch:
                yield source, read if isinstance(read, UnreadableImageError) else next(rows)

    def prediction(self, scores: Scores, threshold: float | None = None) -> Prediction:
        """Put names and thresholds to scores, float32 [N, C].

        Args:
            scores: of N images.
            threshold: one for all classes, in [0, 1]; None: the student's own.
        """
        own = self.thresholds
        return Prediction(self.classes, scores, own if threshold is None else np.full_like(own, threshold))

    def score(self, pixels: Tensor) -> Scores:
        """Score images that are resized already.

        Args:
            pixels: uint8 [B, 3, S, S], as `preprocessing.resize` gives them.

        Returns:
            float32 [B, C], in [0, 1].
        """
        return self._forward(pixels)[0]

    def look(self, image: ImageLike) -> tuple[Scores, Scores]:
        """Score one image, and say where.

        Returns:
            Scores float32 [C], and maps float32 [C, h, w] over the whole image: where each score comes from.

        Raises:
            UnreadableImageError: it is no whole image.
        """
        pixels = preprocessing.resize(open_image(image), self.image_size)
        scores, maps = self._forward(torch.from_numpy(pixels)[None])
        return scores[0], maps[0]


class Student(Scorer):
    """A trained student: `Student.load("cache/scenes/models/cdul").predict(["a.jpg", "b.jpg"]).names`.

    Its scores are the same as those of the exported graph, and its maps are class activation maps, whose averages are
    the logits.

    Attributes:
        card: what its folder says of it.
        network: in evaluation mode, on its device.
    """

    def __init__(self, network: classifier.Student, card: student_yaml.Card, device: torch.device) -> None:
        self.card = card
        self.network = network.eval().to(device=device).to(memory_format=torch.channels_last)
        self._device = device

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "auto") -> Self:
        """Load a model folder, as the pipeline leaves it in `cache/<dataset>/models/<method>`.

        Args:
            folder: with `student.yaml` and `student.safetensors`.
            device: auto (a GPU where there is one), cpu or cuda.

        Raises:
            ArtifactError: the folder holds no whole student.
            ParamsError: an unknown device, or one that is not there.
        """
        if not isinstance(folder, (str, os.PathLike)):
            raise ParamsError(f"a model folder is a path, but {type(folder).__name__} was given")
        place = Path(folder)
        if (place / open_card.FILE).is_file():
            raise ParamsError(
                f"{place} is a student of open vocabulary, and is asked for labels: `clipdistill predict FOLDER PATH "
                "--labels FILE`, or `clipdistill.OpenStudent.load(folder, labels)`; calibrate and export are for "
                "classifiers"
            )
        if reason := untrained.reason(place) or _lacking(place):
            raise ArtifactError(f"{place} holds no student: {reason}")
        where = torch_device(device)
        network, card = model_folder.load(place)
        return cls(network, card, where)

    def __repr__(self) -> str:
        return f"Student({self.card.backbone}, {len(self.classes)} classes, {self.image_size} pixels, {self._device})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in column order."""
        return tuple(self.card.classes)

    @property
    def thresholds(self) -> npt.NDArray[np.float64]:
        """Score from which a class is present, float64 [C]."""
        return np.array(self.card.thresholds, dtype=np.float64)

    @property
    def unchosen(self) -> tuple[str, ...]:
        """Names of the classes whose thresholds were to be chosen, and stayed as they were: the labels told none."""
        if not self.card.calibration:
            return ()
        pairs = zip(self.classes, self.card.thresholds, strict=True)
        return tuple(name for name, threshold in pairs if threshold == DEFAULT)

    @property
    def image_size(self) -> int:
        """Side of its input, pixels."""
        return self.card.preprocessing.image_size

    @torch.inference_mode()
    def _forward(self, pixels: Tensor) -> tuple[Scores, Scores]:
        logits, maps = self.network(preprocessing.normalise(pixels.to(self._device, non_blocking=True)))
        return classifier.scores(logits, self.card.head).cpu().numpy(), maps.cpu().numpy()


def torch_device(device: str) -> torch.device:
    """The device that a name stands for.

    Raises:
        ParamsError: it is none of auto, cpu and cuda, or is not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ParamsError(f"device must be auto, cpu or cuda, but is {device!r}")
    return distributed.Compute(device=device).torch_device()  # type: ignore[arg-type]


def load_any(folder: Path, labels: Sequence[str | ClassName] | None, device: str) -> Scorer:
    """Load a model folder of either kind.

    Args:
        folder: of a student.
        labels: what a student of open vocabulary is asked for; None: its own. A classifier's are its classes.
        device: auto, cpu or cuda.

    Raises:
        ArtifactError: the folder holds no whole student.
        ParamsError: labels that cannot be told apart, or an unknown device.
    """
    if (folder / open_card.FILE).is_file():
        # Only here: it brings open_clip, which a classifier does without.
        from clipdistill.application.open_student import OpenStudent  # noqa: PLC0415

        return OpenStudent.load(folder, labels, device)
    return Student.load(folder, device)


def _lacking(folder: Path) -> str | None:
    """What a folder lacks of a student, and where students are; None where there should be one."""
    if (folder / student_yaml.FILE).is_file():
        return None
    if folder.is_file():
        return "it is a file; name the folder that it is in"
    reason = f"{student_yaml.FILE} is missing" if folder.is_dir() else "there is no such folder"
    here = sorted(card.parent.as_posix() for card in Path().glob(f"cache/*/models/*/{student_yaml.FILE}"))
    cure = f"here are {', '.join(here)}" if here else "`dvc pull` or `dvc repro` brings students to cache/*/models/*"
    return f"{reason}; {cure}"
