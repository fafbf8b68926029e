"""Pictures of CCD's first update: where the student pointed, what CLIP said there, and how the label moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipdistill import distributed, store
from clipdistill.datasets.table import ImageTable, Labels, read_classes, read_labels
from clipdistill.evaluation import view_picture
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.training.ccd_labels import CcdLabels
from clipdistill.training.ccd_refine import view_scores
from clipdistill.training.data import ImageSource
from clipdistill.training.localize import Pointer

_PICTURES = 8


def draw(params: Params, out: Path) -> None:
    """Draw a few training images, from the one whose label moved most to one whose label hardly moved.

    Args:
        params: all parameters.
        out: folder of the pictures, `<rank>-<image id>.png`.
    """
    paths = Paths(params.dataset.name)
    table = ImageTable.load(paths.table("train"))
    scene = _Update(params, paths, table)
    out.mkdir(parents=True, exist_ok=True)
    for rank, row in enumerate(scene.telling_rows(), start=1):
        picture = view_picture.draw(table.open(row), scene.story(row))
        picture.save(out / f"{rank}-{_file_name(table.ids[row])}.png")


def _file_name(image: str) -> str:
    """An id may hold folders and anything else that a file system takes."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in image)[:80]


class _Update:
    """The first update of the labels, as a reader of its artifacts."""

    def __init__(self, params: Params, paths: Paths, table: ImageTable) -> None:
        self._table = table
        self._names = [item.name for item in read_classes(paths.classes)]
        self._before, self._after = (CcdLabels.read(paths.ccd_labels(update), table).labels for update in (0, 1))
        self._views = store.read_group(paths.cam_views, {"table": table.fingerprint})
        self._offset = self._views.read("offset")
        embeddings = paths.embeddings("train", "cam")
        self._answers, _ = view_scores(paths.text, embeddings, table, params)
        self._truth: Labels = read_labels(paths.ground_truth("train"), table)
        self._pointer = Pointer(paths.ccd_student(0), params.ccd.localize, distributed.Compute.load())
        self._images = ImageSource(table, self._pointer.image_size, "none", workers=1)

    def telling_rows(self) -> list[int]:
        """Rows in even steps of how far the label moved, the farthest first."""
        moved = (self._after - self._before).abs().sum(dim=1)
        order = torch.argsort(moved, descending=True, stable=True)
        places = np.linspace(0, len(order) - 1, num=min(_PICTURES, len(order))).round().astype(int)
        return [int(order[place]) for place in places]

    def story(self, row: int) -> view_picture.Story:
        """What happened to the label of an image."""
        known = bool((self._truth[row] >= 0).all())
        return view_picture.Story(
            title=self._table.ids[row],
            views=self._looked_at(row),
            before=self._named(self._before[row]),
            after=self._named(self._after[row]),
            truth=[self._names[c] for c in np.flatnonzero(self._truth[row] == 1)] if known else None,
        )

    def _looked_at(self, row: int) -> list[view_picture.LookedAt]:
        start, stop = int(self._offset[row]), int(self._offset[row + 1])
        if start == stop:
            return []
        boxes, categories, probabilities = (
            self._views.read(name, start, stop) for name in ("box", "category", "probability")
        )
        rows = torch.full((stop - start,), row)
        (maps,) = self._pointer.maps(self._images, rows, torch.from_numpy(categories).long())
        cams = maps.cpu().numpy()
        views = [
            view_picture.LookedAt(
                name=self._names[categories[view]],
                probability=float(probabilities[view]),
                box=tuple(boxes[view].tolist()),
                cam=cams[view],
                answer=self._best(self._answers[start + view]),
            )
            for view in range(stop - start)
        ]
        return sorted(views, key=lambda view: -view.probability)

    def _best(self, scores: Tensor) -> list[tuple[str, float]]:
        best = torch.topk(scores, min(view_picture.MAX_ANSWERS, len(scores)))
        return [(self._names[c], value) for value, c in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def _named(self, label: Tensor) -> dict[str, float]:
        return dict(zip(self._names, label.tolist(), strict=True))
