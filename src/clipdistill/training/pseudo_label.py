"""First labels of the training images, and the teacher's own scores, from cached cosines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clipdistill import store
from clipdistill.datasets.table import Labels
from clipdistill.evaluation.metrics import mean_average_precision
from clipdistill.methods import cdul
from clipdistill.methods.standardise import standardise
from clipdistill.params import PseudoLabelParams

Method = Literal["global", "cdul"]


@dataclass(frozen=True, slots=True)
class FirstLabels:
    """Scores of N images and C classes, float32 in [0, 1].

    Attributes:
        whole: scores of the whole image [N, C] (CDUL Eq. 2).
        aggregate: scores aggregated over snippets [N, C] (CDUL Eq. 6).
        final: their fusion [N, C], the first labels (CDUL Eq. 7).
        share_of_maximum: share of entries whose maximum reaches the threshold (gamma = 1), in [0, 1]. At 0 the
            threshold is above all scores and the aggregate is the plain minimum.
    """

    whole: Tensor
    aggregate: Tensor
    final: Tensor
    share_of_maximum: float


def resolve_temperature(params: PseudoLabelParams, similarity: store.Group) -> float:
    """Temperature as a number; `model` is the reciprocal of the teacher's learnt logit scale."""
    if params.temperature == "model":
        return 1.0 / float(similarity.provenance["text"]["logit_scale"])
    return params.temperature


def first_labels(similarity: store.Group, params: PseudoLabelParams) -> FirstLabels:
    """Score, aggregate and fuse (CDUL Eq. 1 to 7).

    Args:
        similarity: artifact with `global` [N, C], `snippets` [V, C] and `offset` [N + 1].
        params: section `pseudo_label`.
    """
    temperature = resolve_temperature(params, similarity)
    whole = cdul.scores(torch.from_numpy(similarity.read("global")), temperature)
    snippets = cdul.scores(torch.from_numpy(similarity.read("snippets")), temperature)
    maximum, minimum = cdul.extremes(snippets, torch.from_numpy(similarity.read("offset")))
    reached = cdul.gamma(maximum, params.cdul.threshold)
    aggregate = cdul.aggregate(maximum, minimum, params.cdul.threshold)
    whole, aggregate = (standardise(item, params.standardise) for item in (whole, aggregate))
    final = cdul.final_similarity(whole, aggregate, params.cdul.weight)
    return FirstLabels(whole, aggregate, final, float(reached.float().mean()))


def scoring(method: str, params: PseudoLabelParams) -> dict[str, Any]:
    """The parameters that a method's scores depend on, for their provenance.

    Args:
        method: "global" and "teacher" see the whole image alone, "cdul" and "teacher_views" snippets as well.
        params: section `pseudo_label`.
    """
    used = params.model_dump(exclude={"cdul"} if method in ("global", "teacher") else None)
    return {"method": method, **used}


def write_labels(out: Path, labels: Tensor, table: str, provenance: dict[str, Any]) -> None:
    """Write soft labels float32 [N, C] of a table (by its fingerprint)."""
    store.write_group(out, {"labels": labels.float().numpy()}, {"table": table, **provenance})


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
