"""The report's images: scores of every method for a few of them, and where the students look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from clipdistill import distributed, store
from clipdistill.datasets.table import ImageTable, Labels, read_classes, read_labels
from clipdistill.evaluation import gallery
from clipdistill.evaluation.gallery import Gallery, Group, Picture, Said
from clipdistill.evaluation.report_figures import ORDER
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.students import model_folder
from clipdistill.training.data import ImageSource
from clipdistill.training.localize import Pointer

# Whose scores choose the images: the best that learns without labels, of those that are there.
_JUDGES = ("ccd", "cdul", "global", "teacher_views", "teacher", "supervised")


def collect(params: Params) -> Gallery | None:
    """Choose images of the evaluation split and say what each method sees in them.

    Args:
        params: all parameters.

    Returns:
        The gallery; None where no method has scored the images.

    Raises:
        ArtifactError: an artifact is damaged, or of another image table.
        UnreadableImageError: a file is gone, changed or broken.
    """
    paths = Paths(params.dataset.name)
    table = ImageTable.load(paths.table("val"))
    truth = read_labels(paths.ground_truth("val"), table)
    names = [item.name for item in read_classes(paths.classes)]
    found = {method: scores for method in ORDER if (scores := _scores(paths.predictions(method), table)) is not None}
    judge = next((method for method in _JUDGES if method in found), None)
    if judge is None:
        return None
    threshold = params.evaluate.threshold
    chosen = gallery.choose(found[judge], truth, threshold)
    rows = sorted(row for part in chosen.values() for row in part)
    said = {method: _say(method, scores, truth, rows, names, params) for method, scores in found.items()}
    groups = [
        Group(title, [_picture(table, row, {method: each[row] for method, each in said.items()}) for row in part])
        for title, part in chosen.items()
        if part
    ]
    return Gallery(judge, list(found), threshold, bool((truth >= 0).any()), groups)


def _scores(path: Path, table: ImageTable) -> gallery.Scores | None:
    """Scores of a method, float32 [N, C]; None where it scored nothing."""
    if not path.exists():
        return None
    group = store.read_group(path, {"table": table.fingerprint})
    return None if "untrained" in group.provenance else group.read("scores")


def _say(
    method: str, scores: gallery.Scores, truth: Labels, rows: list[int], names: list[str], params: Params
) -> dict[int, Said]:
    """Tags of the chosen images, by row; of a student with their maps."""
    paths = Paths(params.dataset.name)
    table = ImageTable.load(paths.table("val"))
    said = {row: gallery.tags(scores[row], truth[row], names, params.evaluate.threshold) for row in rows}
    if (paths.model(method) / model_folder.CARD).exists():
        pointer = Pointer(paths.model(method), params.ccd.localize, distributed.Compute.load())
        images = ImageSource(table, pointer.image_size, "none", workers=1)
        places = [(row, tag.column) for row in rows for tag in said[row].tags]
        wanted = torch.tensor(places, dtype=torch.int64).reshape(-1, 2)
        maps = (cam for part in pointer.maps(images, wanted[:, 0], wanted[:, 1]) for cam in part.cpu().numpy())
        for (row, column), cam in zip(places, maps, strict=True):
            said[row].heat[column] = gallery.heatmap(np.asarray(cam, dtype=np.float32))
    return said


def _picture(table: ImageTable, row: int, said: dict[str, Said]) -> Picture:
    return Picture(table.ids[row], table.paths[row], *gallery.thumbnail(table.open(row)), said)
