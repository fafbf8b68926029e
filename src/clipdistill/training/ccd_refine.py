"""CCD's update: what CLIP says of the places that a student pointed at goes into the labels."""

from __future__ import annotations

from pathlib import Path

import torch

from clipdistill import store
from clipdistill.clip.similarity import cosines
from clipdistill.datasets.table import ImageTable
from clipdistill.methods import cdul
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.training.ccd_labels import CcdLabels
from clipdistill.training.pseudo_label import resolve_temperature


def refine(before: Path, embeddings: Path, out: Path, update: int, params: Params) -> None:
    """Update labels by what CLIP says of the views.

    Args:
        before: labels.
        embeddings: of the views.
        out: the new labels.
        update: number of this update, from 1.
        params: all parameters.

    Raises:
        ArtifactError: something is missing or altered, or does not belong together.
    """
    paths = Paths(params.dataset.name)
    table = ImageTable.load(paths.table("train"))
    scores, offset = view_scores(paths.text, embeddings, table, params)
    CcdLabels.read(before, table).updated(scores, offset, params.ccd).write(out, table, update)


def view_scores(text: Path, embeddings: Path, table: ImageTable, params: Params) -> tuple[torch.Tensor, torch.Tensor]:
    """CLIP's scores of the views that were pointed at.

    Returns:
        float32 [V, C], rows that sum to 1, and the offsets int64 [N + 1].

    Raises:
        ArtifactError: embeddings of another table, or of another teacher than the text's.
    """
    classes = store.read_group(text)
    teacher = {key: classes.provenance[key] for key in ("model", "weights", "quick_gelu")}
    views = store.read_group(embeddings, {"table": table.fingerprint, **teacher})
    temperature = resolve_temperature(params.pseudo_label, classes.provenance)
    embedding = torch.from_numpy(classes.read("embedding"))
    scores = [torch.empty(0, len(embedding))]
    scores += [cdul.scores(torch.from_numpy(block), temperature) for block in cosines(views, embedding)]
    return torch.cat(scores), torch.from_numpy(views.read("offset"))
