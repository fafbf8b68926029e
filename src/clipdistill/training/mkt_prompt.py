"""MKT's second stage: the words around the labels learn, image tower and text encoder stay."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clipdistill import distributed, store
from clipdistill.clip import open_folder
from clipdistill.clip.open_folder import OpenStudent
from clipdistill.datasets.table import ImageTable
from clipdistill.evaluation import thresholds
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.students import open_card, untrained
from clipdistill.students.context import Prompts
from clipdistill.students.open_vocabulary import PromptedStudent
from clipdistill.training.loop import Task, Trainer
from clipdistill.training.mkt_student import RankingLabels, seen_truth
from clipdistill.training.mkt_vocabulary import read_vocabulary
from clipdistill.training.regime import Regime
from clipdistill.training.train import Run, launch, run_task

logger = logging.getLogger(__name__)

_MOST_SORTED = 20_000_000
"""Scores by which the one is chosen from which a label is present."""


@dataclass(frozen=True, slots=True)
class PromptDesign:
    """The context of a trained student's prompts.

    Attributes:
        student: whose.
        prompts: of the S labels that are trained on.
    """

    student: OpenStudent
    prompts: Prompts

    @property
    def image_size(self) -> int:
        """Side of the student's input, pixels."""
        return self.student.card.image_size

    @property
    def identity(self) -> dict[str, Any]:
        """The student, and the labels as the text encoder reads them."""
        tokens = hashlib.sha256(self.prompts.tokens.numpy().tobytes()).hexdigest()
        return {"student": self.student.card.sha256, "labels": tokens}

    def build(self, columns: int, seed: int) -> PromptedStudent:  # noqa: ARG002 - nothing is random
        """Make the network, whose context is the student's."""
        student = self.student
        return PromptedStudent(student.eyes(), student.model, self.prompts, student.context, student.scoring)


def tune_prompt(params: Params, command: list[str]) -> None:
    """Tune the context by the labels that the student was trained on, and write students/mkt_prompted.

    The score at which a label counts as present is chosen here as well: the one with the best F1 over all labels and
    training images together, by what was learnt, so that it holds for labels that nobody has seen.

    Args:
        params: all parameters.
        command: the stage's script and its arguments, started once a process where there are several.
    """
    compute, paths = distributed.Compute.load(), Paths(params.dataset.name)
    if reason := untrained.reason(paths.student("mkt")):
        untrained.mark(paths.mkt_prompted, reason)
        store.write_json(paths.curves("mkt_prompted") / "metrics.json", {})
        return
    if launch(command, params.mkt.tune.batch_size, compute):
        return
    table = ImageTable.load(paths.table("train"))
    vocabulary = read_vocabulary(params.mkt, paths, table)
    student = open_folder.load(paths.student("mkt"))
    design = PromptDesign(student, student.tokenise(vocabulary.prompts))
    settings = params.mkt.model_copy(update={"distil": params.mkt.distil.model_copy(update={"weight": 0.0})})
    recipe = params.mkt.recipe.model_copy(update={**params.mkt.tune.model_dump(), "weight_decay": 0.0})
    task = Task(
        table,
        torch.from_numpy(vocabulary.labels),
        design,
        recipe,
        RankingLabels(settings, student.scoring, None, None),
        seen_truth(paths, table, vocabulary),
        Regime(),
    )

    def finish(trainer: Trainer, run: Run) -> None:
        network = trainer.student
        assert isinstance(network, PromptedStudent)  # noqa: S101 - for the type checker: PromptDesign builds no other
        # Scores are in [-1, 1]: at their own scale, sigmoids of those far from the shift are all 1, or all 0.
        network.scoring = replace(student.scoring, scale=1.0)
        scores, labels = trainer.score()
        if distributed.rank() == 0:
            shift = _shift(scores, labels, student.scoring.shift)
            tuned = network.context.detach().cpu()
            provenance = {**student.card.provenance, "prompt_tuning": run.provenance}
            changes = {"tuned": True, "shift": shift, "provenance": provenance}
            card = open_card.OpenCard.model_validate(student.card.model_dump() | changes)
            open_folder.save(paths.mkt_prompted, OpenStudent(student.model, tuned, card))

    run_task(task, vocabulary.names, "tune_prompt/mkt", finish, paths.curves("mkt_prompted"), compute)


def _shift(scores: Tensor, labels: Tensor, before: float) -> float:
    """The score with the best F1, from sigmoids [N, S] of scores less the shift before, and labels [N, S] learnt."""
    # Of very many images some are enough: sorting takes a dozen times the memory of what is sorted.
    step = -(-scores.numel() // _MOST_SORTED)
    scores, labels = scores[::step], labels[::step]
    known = labels >= 0
    # Soft labels as they are: F1 is the expected one then. At 0.5 most classes that are there would count as absent.
    best = float(thresholds.best_f1(scores[known].numpy()[:, None], labels[known].numpy()[:, None])[0])
    if best == thresholds.DEFAULT:
        logger.warning("tune_prompt: the labels tell no score from which one is present; it stays where it was")
    return round(before + math.log(best / (1 - best)), 6)
