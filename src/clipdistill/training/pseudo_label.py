"""First labels of the training images, and the teacher's own scores, from cached cosines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clipdistill import store
from clipdistill.datasets.table import ImageTable, Labels
from clipdistill.evaluation.metrics import mean_average_precision
from clipdistill.methods import cdul
from clipdistill.methods.checks import counts_of_views
from clipdistill.methods.standardise import standardise
from clipdistill.params import MAX_ROUNDS, Params, PseudoLabelParams
from clipdistill.stage import Paths
from clipdistill.training.ccd_labels import CcdLabels

logger = logging.getLogger(__name__)

# The views' cosines in memory at a time: little beside the labels, and many chunks to a read.
_BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class FirstLabels:
    """Scores of N images and C classes, float32 in [0, 1].

    Attributes:
        whole: scores of the whole image [N, C] (CDUL Eq. 2).
        aggregate: scores aggregated over snippets [N, C] (CDUL Eq. 6).
        final: their fusion [N, C], the first labels (CDUL Eq. 7).
        share_of_maximum: share of entries whose maximum reaches the threshold (gamma = 1), in [0, 1]. At 0 the
            threshold is above all scores and the aggregate is the plain minimum.
        scores: of the whole image before any standardisation [N, C].
    """

    whole: Tensor
    aggregate: Tensor
    final: Tensor
    share_of_maximum: float
    scores: Tensor


def resolve_temperature(params: PseudoLabelParams, text: dict[str, Any]) -> float:
    """Temperature as a number; `model` is the reciprocal of the logit scale in the provenance of the text."""
    return 1.0 / float(text["logit_scale"]) if params.temperature == "model" else params.temperature


def first_labels(similarity: store.Group, params: PseudoLabelParams) -> FirstLabels:
    """Score, aggregate and fuse (CDUL Eq. 1 to 7); of the views, a block of images at a time is in memory.

    Args:
        similarity: artifact with `global` [N, C], `snippets` [V, C] and `offset` [N + 1].
        params: section `pseudo_label`.
    """
    temperature = resolve_temperature(params, similarity.provenance["text"])
    whole = cdul.scores(torch.from_numpy(similarity.read("global")), temperature)
    maximum, minimum = _extremes(similarity, temperature)
    reached = cdul.gamma(maximum, params.cdul.threshold)
    aggregate = cdul.aggregate(maximum, minimum, params.cdul.threshold)
    plain = whole
    whole, aggregate = (standardise(item, params.standardise) for item in (whole, aggregate))
    final = cdul.final_similarity(whole, aggregate, params.cdul.weight)
    return FirstLabels(whole, aggregate, final, float(reached.float().mean()), plain)


def _extremes(similarity: store.Group, temperature: float) -> tuple[Tensor, Tensor]:
    """Highest and lowest score of each image's views (CDUL Eq. 5), both float32 [N, C]."""
    offset = torch.from_numpy(similarity.read("offset"))
    views, classes = similarity.shape("snippets")
    counts_of_views(offset, views)
    maximum, minimum = (torch.empty(len(offset) - 1, classes) for _ in range(2))
    for first, last in image_ranges(offset, _BLOCK_BYTES // (4 * classes)):
        own = offset[first : last + 1]
        scores = cdul.scores(torch.from_numpy(similarity.read("snippets", int(own[0]), int(own[-1]))), temperature)
        maximum[first:last], minimum[first:last] = cdul.extremes(scores, own - own[0])
    return maximum, minimum


def image_ranges(offset: Tensor, most: int) -> Iterator[tuple[int, int]]:
    """Cut images into ranges of few views each, in order, without cutting an image.

    Args:
        offset: int64 [N + 1], ascending; the views of image i are rows offset[i] to offset[i + 1].
        most: views of a range; an image with more has a range of its own.

    Yields:
        First image of a range, and the one after its last.
    """
    first, images = 0, len(offset) - 1
    while first < images:
        within = int(torch.searchsorted(offset, offset[first] + most, right=True)) - 1
        last = min(max(within, first + 1), images)
        yield first, last
        first = last


def scoring(method: str, params: PseudoLabelParams) -> dict[str, Any]:
    """The parameters that a method's scores depend on, for their provenance.

    Args:
        method: "global" and "teacher" see the whole image alone, "cdul" and "teacher_views" snippets as well.
        params: section `pseudo_label`.
    """
    used = params.model_dump(exclude={"cdul"} if method in ("global", "teacher") else None)
    return {"method": method, **used}


@dataclass(frozen=True, slots=True)
class TrainingLabels:
    """Labels of the training images as a method hands them to its student.

    Attributes:
        final: float32 [N, C], in [0, 1].
        states: what the report tells of, by name, each [N, C].
        scores: float32 [N, C], CLIP's scores of the whole images before any standardisation; None where these labels
            are not made of them alone.
        provenance: what they were made from.
    """

    final: Tensor
    states: dict[str, Tensor]
    provenance: dict[str, Any]
    scores: Tensor | None = None


def labels_of(method: str, paths: Paths, table: ImageTable, params: Params) -> TrainingLabels:
    """Labels of a method.

    Args:
        method: "global" (CLIP on the whole image), "cdul" (with its snippets), "dense" (with the cells of its map,
            as CDUL does with snippets), or "ccd" (as its last update left them).
        paths: of the artifacts.
        table: training images.
        params: all parameters.

    Raises:
        ArtifactError: what they are made from is missing, altered, or of another image table.
    """
    if method == "ccd":
        return _updated(paths, table)
    kind = "dense" if method == "dense" else "snippets"
    similarity = store.read_group(paths.similarity("train", kind), {"table": table.fingerprint})
    labels = first_labels(similarity, params.pseudo_label)
    states = {"global": labels.whole}
    if method in ("cdul", "dense"):
        states |= {"aggregate": labels.aggregate, "final": labels.final}
        if labels.share_of_maximum == 0:
            logger.warning("pseudo_label.cdul.threshold is above every score: the aggregate is the plain minimum")
    sources = ("text", "global") if method == "global" else ("text", "global", "snippets")
    used = {name: similarity.provenance[name] for name in sources}
    provenance = {"table": table.fingerprint, **scoring(method, params.pseudo_label), **used}
    scores = labels.scores if method == "global" else None
    return TrainingLabels(states[next(reversed(states))].float(), states, provenance, scores)


def _updated(paths: Paths, table: ImageTable) -> TrainingLabels:
    path = paths.ccd_labels(MAX_ROUNDS)
    labels = CcdLabels.read(path, table)
    first, *updates = labels.raw
    states = {"initial": first, "refined": updates[-1]}
    states |= {f"round{update}": state for update, state in enumerate(updates, start=1)}
    return TrainingLabels(labels.labels, states, store.read_group(path).provenance)


def label_quality(
    labels: dict[str, Tensor], ground_truth: Labels, empty_class: Literal["skip", "zero"]
) -> dict[str, Any]:
    """Mean average precision of each label matrix against the ground truth, for the report alone.

    Args:
        labels: by name, [N, C].
        ground_truth: int8 [N, C]; -1 is left out.
        empty_class: what a class without positives counts.

    Returns:
        `<name>_mAP` in percent, rounded to 2 decimals; null where nothing is labelled.
    """
    known = bool(np.any(ground_truth == 1))
    return {
        f"{name}_mAP": round(mean_average_precision(matrix, ground_truth, empty_class)[0], 2) if known else None
        for name, matrix in labels.items()
    }
