"""CCD's labels: debiased, updated by what CLIP says of the views that the student points at, kept from round to round.

Source: Kim and Shim, CVPR 2025, arXiv 2503.16873. The mathematics is in `clipdistill.methods.ccd`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from clipdistill import store
from clipdistill.datasets.table import ImageTable
from clipdistill.methods import ccd
from clipdistill.params import CcdParams


@dataclass(frozen=True, slots=True)
class CcdLabels:
    """Labels of N images and C classes after U updates.

    Two states run beside each other. `raw` is what the labels are worth: neither raised to the floor nor cut at 1,
    since both tie scores that differ. `labels` is what a student learns from.

    Attributes:
        labels: float32 [N, C], in [0, 1].
        raw: float32 [U + 1, N, C], 0 or greater, before the first update and after each.
        bias: float32 [C], CLIP's mean top-1 score of each class, with `ccd.bias.relative` over the smallest of them.
        weight: float32 [N], of the images in the loss, in [0, 1].
    """

    labels: Tensor
    raw: Tensor
    bias: Tensor
    weight: Tensor

    @classmethod
    def initial(cls, first: Tensor, whole: Tensor, params: CcdParams) -> Self:
        """Labels before the first update.

        Args:
            first: float32 [N, C], in [0, 1], of any method.
            whole: float32 [N, C], CLIP's scores of the whole images, whose bias is measured.
            params: section `ccd`.
        """
        bias = ccd.class_bias(whole, params.bias.entropy_max, params.bias.min_count)
        if params.bias.relative:
            # What is divided by at least 1 stays below 1: no cut ties what differs.
            bias = bias / bias.min()
        weight = ccd.image_weights(whole, params.bias.entropy_max, params.train.unsure_weight)
        labels = ccd.debias(first, bias, params.floor).clamp(0, 1)
        return cls(labels, ccd.debias(first, bias)[None], bias, weight)

    def updated(self, view_scores: Tensor, offset: Tensor, params: CcdParams) -> Self:
        """Labels after one more update.

        Args:
            view_scores: float32 [V, C], CLIP's scores of the views.
            offset: int64 [N + 1]; the views of image i are rows offset[i] to offset[i + 1]; without any it keeps its
                labels.
            params: section `ccd`.
        """
        views = (view_scores, offset, self.bias, params.ratio)
        labels = ccd.refine(self.labels, *views, params.floor).clamp(0, 1)
        raw = torch.cat([self.raw, ccd.refine(self.raw[-1], *views)[None]])
        return type(self)(labels, raw, self.bias, self.weight)

    def write(self, out: Path, table: ImageTable, update: int) -> None:
        """Write the artifact: labels of a table after an update, from 1 (0: before the first)."""
        arrays = {name: getattr(self, name).numpy() for name in ("labels", "raw", "bias", "weight")}
        store.write_group(out, arrays, {"table": table.fingerprint, "method": "ccd", "update": update})

    @classmethod
    def read(cls, path: Path, table: ImageTable) -> Self:
        """Read the artifact.

        Raises:
            ArtifactError: it is missing or altered, or of another image table.
        """
        group = store.read_group(path, {"table": table.fingerprint})
        return cls(*(torch.from_numpy(group.read(name)) for name in ("labels", "raw", "bias", "weight")))
