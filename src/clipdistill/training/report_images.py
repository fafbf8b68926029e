"""The report's images: scores of every method for a few of them, and where the students look."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from clipdistill import distributed, store
from clipdistill.datasets.table import ImageTable, Labels, read_classes, read_labels
from clipdistill.evaluation import gallery
from clipdistill.evaluation.gallery import Gallery, Group, Picture, Said
from clipdistill.evaluation.report_figures import ORDER
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.students import student_yaml
from clipdistill.training.data import ImageSource
from clipdistill.training.localize import Pointer

# Whose scores choose the images: the best that learns without labels, of those that are there.
_JUDGES = ("ccd", "cdul", "global", "teacher_views", "teacher", "supervised")


class _Scored(NamedTuple):
    """What a method made of the images: scores float32 [N, C]; thresholds float64 [C], None where it has none."""

    scores: gallery.Scores
    own: gallery.Thresholds | None

    def thresholds(self, common: float) -> gallery.Thresholds:
        """Its own, or the same one for all classes."""
        return np.full(self.scores.shape[1], common) if self.own is None else self.own


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
    found = {method: scored for method in ORDER if (scored := _scored(paths.predictions(method), table)) is not None}
    judge = next((method for method in _JUDGES if method in found), None)
    if judge is None:
        return None
    threshold = params.evaluate.threshold
    chosen = gallery.choose(found[judge].scores, truth, found[judge].thresholds(threshold))
    rows = sorted(row for part in chosen.values() for row in part)
    said = {method: _say(method, scored, table, truth, rows, names, params) for method, scored in found.items()}
    groups = [
        Group(title, [_picture(table, row, {method: each[row] for method, each in said.items()}) for row in part])
        for title, part in chosen.items()
        if part
    ]
    own = [method for method, scored in found.items() if scored.own is not None]
    return Gallery(judge, list(found), own, threshold, bool((truth >= 0).any()), groups)


def _scored(path: Path, table: ImageTable) -> _Scored | None:
    """Scores of a method, and the thresholds that `clipdistill predict` uses; None where it scored nothing."""
    if not path.exists():
        return None
    group = store.read_group(path, {"table": table.fingerprint})
    if "untrained" in group.provenance:
        return None
    return _Scored(group.read("scores"), group.read("thresholds") if "thresholds" in group.names else None)


def _say(
    method: str, scored: _Scored, table: ImageTable, truth: Labels, rows: list[int], names: list[str], params: Params
) -> dict[int, Said]:
    """Tags of the chosen images, by row; of a student with their maps."""
    student = Paths(params.dataset.name).student(method)
    thresholds = scored.thresholds(params.evaluate.threshold)
    said = {row: gallery.tags(scored.scores[row], truth[row], names, thresholds) for row in rows}
    if (student / student_yaml.FILE).exists():
        pointer = Pointer(student, params.ccd.localize, distributed.Compute.load())
        images = ImageSource(table, pointer.image_size, "none", workers=1)
        places = [(row, tag.column) for row in rows for tag in said[row].tags]
        wanted = torch.tensor(places, dtype=torch.int64).reshape(-1, 2)
        maps = (cam for part in pointer.maps(images, wanted[:, 0], wanted[:, 1]) for cam in part.cpu().numpy())
        for (row, column), cam in zip(places, maps, strict=True):
            score = float(scored.scores[row, column])
            said[row].heat[column] = gallery.heatmap(np.asarray(cam, dtype=np.float32), score)
    return said


def _picture(table: ImageTable, row: int, said: dict[str, Said]) -> Picture:
    return Picture(table.ids[row], table.paths[row], *gallery.thumbnail(table.open(row)), said)
