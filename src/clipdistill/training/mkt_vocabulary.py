"""The labels that MKT's training sees: names, prompt names and values. Nothing of an unseen one is among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipdistill import store
from clipdistill.datasets.table import ClassName, ImageTable, read_classes, read_labels
from clipdistill.errors import ArtifactError
from clipdistill.params import MktParams
from clipdistill.stage import Paths
from clipdistill.training.train import stored_labels


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """S labels that are trained on.

    Attributes:
        names: of the labels.
        prompts: how a prompt says them.
        labels: float32 [N, S], in [0, 1]; -1 unknown.
    """

    names: list[str]
    prompts: list[str]
    labels: npt.NDArray[np.float32]


def write_seen(paths: Paths) -> None:
    """Write the ground truth of the training images for the seen labels: all of it that training may read."""
    table = ImageTable.load(paths.table("train"))
    classes = read_classes(paths.open_classes)
    columns = [column for column, item in enumerate(classes) if item.seen]
    labels = read_labels(paths.open_labels("train"), table)[:, columns].astype(np.float32)
    provenance = {"table": table.fingerprint, "classes": [classes[column].name for column in columns]}
    store.write_group(paths.labels("ground_truth"), {"labels": np.ascontiguousarray(labels)}, provenance)


def read_vocabulary(params: MktParams, paths: Paths, table: ImageTable) -> Vocabulary:
    """Read the labels that `mkt.supervision` names, without any of an unseen one.

    Raises:
        ArtifactError: the labels are missing, altered, or of another image table or list of classes.
    """
    open_classes = read_classes(paths.open_classes)
    if params.supervision == "ground_truth":
        path = paths.labels("ground_truth")
        group = store.read_group(path, {"table": table.fingerprint})
        known = {item.name: item for item in open_classes if item.seen}
        try:
            columns = [known[name] for name in group.provenance["classes"]]
        except KeyError as error:
            raise ArtifactError(
                f"{path} has a label {error}, which {paths.open_classes} has not among the seen ones: run `dvc repro`"
            ) from None
        return _of(columns, group.read("labels"))
    labels = _pseudo_labels(params.supervision, paths, table).read("labels")
    unseen = {item.name for item in open_classes if not item.seen}
    classes = read_classes(paths.classes)
    kept = [column for column, item in enumerate(classes) if item.name not in unseen]
    return _of([classes[column] for column in kept], np.ascontiguousarray(labels[:, kept]))


def _pseudo_labels(method: str, paths: Paths, table: ImageTable) -> store.Group:
    if method != "ccd":
        return stored_labels(method, paths, table)
    # CCD's labels are made of others, whose classes were compared when it read them.
    return store.read_group(paths.labels(method), {"table": table.fingerprint})


def _of(classes: list[ClassName], labels: npt.NDArray[np.float32]) -> Vocabulary:
    return Vocabulary([item.name for item in classes], [item.prompt for item in classes], labels)
