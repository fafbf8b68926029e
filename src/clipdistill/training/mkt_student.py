"""MKT's first stage: an image tower learns to rank the seen labels, and to stay near what CLIP makes of an image."""

from __future__ import annotations

import copy
import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipdistill import distributed, store
from clipdistill.clip import open_folder, teacher
from clipdistill.clip.open_folder import OpenStudent
from clipdistill.clip.teacher import Teacher
from clipdistill.datasets.table import ImageTable, read_classes, read_labels
from clipdistill.errors import ArtifactError
from clipdistill.methods import mkt
from clipdistill.params import MktParams, Params
from clipdistill.stage import Paths
from clipdistill.students import context, preprocessing, tokens, untrained, weights
from clipdistill.students.open_card import OpenCard
from clipdistill.students.open_vocabulary import Eyes, OpenVocabularyStudent, Scoring
from clipdistill.training.loop import Task, Trainer, Truth
from clipdistill.training.mkt_vocabulary import Vocabulary, read_vocabulary
from clipdistill.training.regime import Regime
from clipdistill.training.supervision import FixedLabels
from clipdistill.training.train import Run, launch, run_task

logger = logging.getLogger(__name__)

# Images by which scores are brought about 0 before anything is learnt: a sigmoid of cosines over a temperature of 0.01
# would be 1 for all of them.
_FIRST_LOOK = 256


class RankingLabels(FixedLabels):
    """Labels that stay as they are, learnt by ranking them; and the teacher's embeddings, learnt by imitation.

    Args:
        params: loss and distillation.
        scoring: of the student: the hinge is one of scores, not of logits.
        eyes: the frozen teacher's, for `distil.teacher` online.
        cached: float [N, D], its embeddings of the training images, for cached.
    """

    def __init__(self, params: MktParams, scoring: Scoring, eyes: Eyes | None, cached: Tensor | None) -> None:
        self._params, self._scale = params, scoring.scale
        self._eyes, self._cached = eyes, cached

    @property
    def identity(self) -> dict[str, Any]:
        """Name and parameters."""
        cached = None if self._cached is None else hashlib.sha256(self._cached.numpy().tobytes()).hexdigest()
        parameters = self._params.model_dump(include={"loss", "margin", "distil"})
        return {"labels": "ranked", **parameters, "cached": cached}

    def loss(self, labels: Tensor, logits: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002 - all images weigh alike
        """The ranking loss of a batch, mean over images."""
        if self._params.loss == "rank":
            return mkt.rank_loss(logits / self._scale, labels, self._params.margin)
        return mkt.log_sum_exp_loss(logits, labels)

    def further_loss(self, images: Tensor, seen: Tensor, rows: Tensor) -> Tensor | None:
        """Distillation of the whole image's embedding."""
        weight = self._params.distil.weight
        if not weight:
            return None
        return weight * mkt.distillation(seen.float(), self._taught(images, seen, rows).float())

    @torch.no_grad()
    def _taught(self, images: Tensor, seen: Tensor, rows: Tensor) -> Tensor:
        """The teacher's embeddings of a batch, [B, D]."""
        if self._cached is not None:
            self._cached = self._cached.to(seen.device)
            # Cached at unit norm: brought to the student's, or the loss would ask it to shrink.
            length: Tensor = torch.linalg.vector_norm(seen.float(), dim=-1, keepdim=True)
            return self._cached[rows] * length
        assert self._eyes is not None  # noqa: S101 - for the type checker: one of the two is there
        self._eyes.to(images.device)
        taught: Tensor = self._eyes(images)[0]
        return taught


@dataclass(frozen=True, slots=True)
class OpenDesign:
    """The open-vocabulary student.

    Attributes:
        teacher: CLIP.
        text: float32 [S, D], embeddings of the labels that are trained on.
        scoring: how labels are scored.
        params: section `mkt`.
        image_size: side of its input, pixels.
    """

    teacher: Teacher
    text: Tensor
    scoring: Scoring
    params: MktParams
    image_size: int

    @property
    def identity(self) -> dict[str, Any]:
        """Teacher, labels and parameters."""
        kept = {"student", "k", "norm", "local", "unlock", "layer_decay", "prompt"}
        return {
            **self.teacher.identity,
            **self.params.model_dump(include=kept),
            "image_size": self.image_size,
            "text": hashlib.sha256(self.text.numpy().tobytes()).hexdigest(),
            "shift": self.scoring.shift,
        }

    def build(self, columns: int, seed: int) -> OpenVocabularyStudent:
        """Make one, whose tower is the teacher's, or a new one of timm."""
        if columns != len(self.text):
            raise ArtifactError(f"{columns} columns of labels, but {len(self.text)} labels were embedded: `dvc repro`")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            eyes, origin = self._eyes()
        return OpenVocabularyStudent(eyes, self.text, self.scoring, self.params.layer_decay, origin).train()

    def _eyes(self) -> tuple[Eyes, str]:
        student = self.params.student
        if student.backbone == "clip":
            return eyes_of(self.teacher, self.image_size, self.params.unlock), "clip"
        width = open_folder.embedding_width(self.teacher.model)
        pretrained = student.weights == "pretrained"
        tower = open_folder.timm_tower(student.backbone, width, self.image_size, pretrained)
        origin = student.weights
        if student.weights not in ("none", "pretrained"):
            origin = weights.load_trunk(tower.trunk, Path(student.weights), student.sha256, "mkt.student")
        trunk: Any = tower.trunk
        config = trunk.default_cfg
        return Eyes(tower, config["mean"], config["std"], _unlocked(tower, self.params.unlock)), origin


def eyes_of(model: Teacher, size: int, unlock: int | str = 0) -> Eyes:
    """A copy of the teacher's image tower, for images of a size.

    Raises:
        ParamsError: the tower has embeddings of places and takes no other size than its own.
    """
    own = model.preprocessing
    cure = "set it to clip (or, where that is the student's own size, mkt.distil.teacher to cached)"
    name = model.identity["model"]
    tokens.require_side(model.model.visual, name, own.size, size, "mkt.student.image_size", cure)
    tower = copy.deepcopy(model.model.visual).requires_grad_(bool(unlock))
    return Eyes(tower, own.mean, own.std, _unlocked(tower, unlock))


def _unlocked(tower: tokens.Tower, unlock: int | str) -> int:
    layers = len(tokens.layers(tower))
    return layers if unlock == "all" else min(int(unlock), layers)


def train_mkt(params: Params, command: list[str]) -> None:
    """Train MKT's image tower, in as many processes as this machine is set to, and write students/mkt.

    Args:
        params: all parameters.
        command: the stage's script and its arguments, started once a process where there are several.
    """
    compute = distributed.Compute.load()
    torch.set_num_threads(compute.thread_count())
    paths = Paths(params.dataset.name)
    table = ImageTable.load(paths.table("train"))
    vocabulary = read_vocabulary(params.mkt, paths, table)
    if not (vocabulary.labels > 0).any():
        reason = "the training images have no ground truth of a seen label; mkt.supervision may name pseudo labels"
        if not vocabulary.names:
            reason = "all classes are unseen labels, so that none is left to train on"
        untrained.mark(paths.student("mkt"), reason)
        store.write_json(paths.curves("mkt") / "metrics.json", {})
        return
    if launch(command, params.mkt.recipe.batch_size, compute):
        return
    model = teacher.load(params.clip)
    design = _design(params, model, vocabulary, table)
    supervision = _supervision(params.mkt, design, paths, table)
    task = Task(
        table,
        torch.from_numpy(vocabulary.labels),
        design,
        params.mkt.recipe,
        supervision,
        seen_truth(paths, table, vocabulary),
        Regime(),
    )

    def finish(trainer: Trainer, run: Run) -> None:
        if distributed.rank() == 0:
            first = context.first_context(model.model, model.tokenizer, params.mkt.prompt)
            student = trainer.student
            assert isinstance(student, OpenVocabularyStudent)  # noqa: S101 - for the type checker
            model.model.visual = student.eyes.tower
            card = _card(params.mkt, design, student, vocabulary, run)
            open_folder.save(paths.student("mkt"), OpenStudent(model.model, first, card))

    run_task(task, vocabulary.names, "train/mkt", finish, paths.curves("mkt"), compute)


def _design(params: Params, model: Teacher, vocabulary: Vocabulary, table: ImageTable) -> OpenDesign:
    settings = params.mkt
    size = model.preprocessing.size if settings.student.image_size == "clip" else settings.student.image_size
    text = embed_labels(model.model, model.tokenizer, settings.prompt, vocabulary.prompts)
    scoring = Scoring(settings.k, settings.norm, settings.local, model.logit_scale)
    # Of a tower that knows nothing yet a look says nothing.
    if settings.student.backbone == "clip":
        scoring = replace(scoring, shift=_first_look(eyes_of(model, size).eval(), table, text, scoring, size))
    return OpenDesign(model, text, scoring, settings, size)


@torch.no_grad()
def embed_labels(model: Any, tokenizer: object, template: str, names: list[str]) -> Tensor:  # noqa: ANN401
    """Embed labels in a template's own words: float32 [L, D], on the CPU, not of unit norm."""
    prompts = context.tokenise(tokenizer, template, names, context.context_length(model))
    return context.encode(model, prompts, context.first_context(model, tokenizer, template)).float()


@torch.no_grad()
def _first_look(eyes: Eyes, table: ImageTable, text: Tensor, scoring: Scoring, size: int) -> float:
    """Mean score of all labels in the first images, as the teacher sees them."""
    rows = range(min(_FIRST_LOOK, len(table)))
    pixels = torch.from_numpy(np.stack([preprocessing.resize(table.open(row), size) for row in rows]))
    looked = [eyes(preprocessing.normalise(part)) for part in torch.split(pixels, 32)]
    if scoring.k > (patches := looked[0][1].shape[1]):
        logger.warning("mkt.k is %d, and an image has %d patches: all count", scoring.k, patches)
    logits = [scoring.logits(cls, patches, text) for cls, patches in looked]
    return round(float(torch.cat(logits).mean()) / scoring.scale, 4)


def _supervision(params: MktParams, design: OpenDesign, paths: Paths, table: ImageTable) -> RankingLabels:
    if not params.distil.weight:
        return RankingLabels(params, design.scoring, None, None)
    if params.distil.teacher == "cached":
        group = store.read_group(paths.embeddings("train", "global"), {"table": table.fingerprint})
        if group.provenance["weights"] != design.teacher.identity["weights"]:
            raise ArtifactError(f"{paths.embeddings('train', 'global')} is of another teacher: run `dvc repro`")
        return RankingLabels(
            params, design.scoring, None, F.normalize(torch.from_numpy(group.read("embedding")).float())
        )
    return RankingLabels(params, design.scoring, eyes_of(design.teacher, design.image_size).eval(), None)


def seen_truth(paths: Paths, table: ImageTable, vocabulary: Vocabulary) -> Truth:
    """Ground truth of the labels that are trained on, for the curves; none where another list has it."""
    val = ImageTable.load(paths.table("val"))
    names = [item.name for item in read_classes(paths.open_classes)]
    if not set(vocabulary.names) <= set(names):
        return Truth()
    columns = [names.index(name) for name in vocabulary.names]
    found = [
        np.ascontiguousarray(read_labels(paths.open_labels(split), own)[:, columns])
        for split, own in (("train", table), ("val", val))
    ]
    train, held_out = (labels if (labels >= 0).any() else None for labels in found)
    return Truth(train=train, val_table=None if held_out is None else val, val=held_out)


def _card(
    params: MktParams, design: OpenDesign, student: OpenVocabularyStudent, vocabulary: Vocabulary, run: Run
) -> OpenCard:
    return OpenCard(
        model=design.teacher.identity["model"],
        quick_gelu=design.teacher.identity["quick_gelu"],
        backbone=params.student.backbone,
        backbone_weights=student.weights,
        image_size=design.image_size,
        mean=list(student.eyes.mean),
        std=list(student.eyes.std),
        prompt=params.prompt,
        tuned=False,
        k=params.k,
        norm=params.norm,
        local=params.local,
        scale=design.scoring.scale,
        shift=design.scoring.shift,
        seen=vocabulary.names,
        provenance={**run.provenance, "supervised_by": params.supervision},
    )
