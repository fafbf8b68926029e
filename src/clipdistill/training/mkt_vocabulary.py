"""The labels that MKT's training sees: names, prompt names and values. Nothing of an unseen one is among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipdistill import store
from clipdistill.datasets.table import ClassName, ImageTable, read_classes, read_labels
from clipdistill.errors import ArtifactError, ParamsError
from clipdistill.params import MktParams, Params
from clipdistill.stage import Paths
from clipdistill.training.pseudo_label import first_labels
from clipdistill.training.train import stored_labels

_ALONE = ("global", "cdul")
"""Pseudo labels that are made anew without the unseen classes."""


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


def write_seen(params: Params) -> None:
    """Write what training may see of a data set with an open vocabulary.

    The ground truth of the seen labels, labels/ground_truth.zarr, float32 [N, S]. And labels/seen_classes.zarr: pseudo
    labels that CLIP gives when it is asked about the seen classes alone, `global` and `cdul`, float32 [N, C'], where
    some classes are unseen (else without rows: the labels of all classes are what they are). A score is a share among
    the classes that CLIP is asked about, so that those of all classes have the words of the unseen ones in them.

    Args:
        params: all parameters.

    Raises:
        ArtifactError: an artifact is missing, altered, or of another image table.
    """
    paths = Paths(params.dataset.name)
    table = ImageTable.load(paths.table("train"))
    classes = read_classes(paths.open_classes)
    columns = [column for column, item in enumerate(classes) if item.seen]
    labels = read_labels(paths.open_labels("train"), table)[:, columns].astype(np.float32)
    provenance = {"table": table.fingerprint, "classes": [classes[column].name for column in columns]}
    store.write_group(paths.labels("ground_truth"), {"labels": np.ascontiguousarray(labels)}, provenance)
    own = read_classes(paths.classes)
    kept = _seen_columns(own, classes)
    arrays = {name: np.empty((0, 0), np.float32) for name in _ALONE}
    if 0 < len(kept) < len(own):
        similarity = store.read_group(paths.similarity("train"), {"table": table.fingerprint})
        first = first_labels(_Columns(similarity, kept), params.pseudo_label)  # type: ignore[arg-type]
        arrays = {"global": first.whole.numpy(), "cdul": first.final.numpy()}
    provenance = {"table": table.fingerprint, "classes": [own[column].name for column in kept]}
    store.write_group(paths.labels("seen_classes"), dict(arrays), provenance)


class _Columns:
    """Cosines with some of the classes, as if there were no others."""

    def __init__(self, similarity: store.Group, kept: list[int]) -> None:
        self._similarity, self._kept = similarity, kept
        self.provenance = similarity.provenance

    def shape(self, name: str) -> tuple[int, ...]:
        rows, *columns = self._similarity.shape(name)
        return (rows, len(self._kept)) if columns else (rows,)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        found = self._similarity.read(name, start, stop)
        return np.ascontiguousarray(found[:, self._kept]) if found.ndim > 1 else found


def _seen_columns(classes: list[ClassName], opened: list[ClassName]) -> list[int]:
    unseen = {item.name for item in opened if not item.seen}
    return [column for column, item in enumerate(classes) if item.name not in unseen]


def read_vocabulary(params: MktParams, paths: Paths, table: ImageTable) -> Vocabulary:
    """Read the labels that `mkt.supervision` names, without any of an unseen one.

    Raises:
        ArtifactError: the labels are missing, altered, or of another image table or list of classes.
        ParamsError: unseen classes had a part in the labels, or a single label is seen.
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
    classes = read_classes(paths.classes)
    kept = _seen_columns(classes, open_classes)
    if len(kept) == len(classes):
        return _of(classes, _pseudo_labels(params.supervision, paths, table).read("labels"))
    if params.supervision not in _ALONE:
        unseen = next(item.name for column, item in enumerate(classes) if column not in kept)
        raise ParamsError(
            f"mkt.supervision: the labels of {params.supervision} were made with unseen classes, such as {unseen!r}, "
            f"in sight; take {' or '.join(_ALONE)}, whose labels are made anew without them, or ground_truth"
        )
    group = store.read_group(paths.labels("seen_classes"), {"table": table.fingerprint})
    named = [classes[column] for column in kept]
    if group.provenance["classes"] != [item.name for item in named]:
        raise ArtifactError(f"{paths.labels('seen_classes')} is of other classes than {paths.classes}: run `dvc repro`")
    return _of(named, group.read(params.supervision))


def _pseudo_labels(method: str, paths: Paths, table: ImageTable) -> store.Group:
    if method != "ccd":
        return stored_labels(method, paths, table)
    # CCD's labels are made of others, whose classes were compared when it read them.
    return store.read_group(paths.labels(method), {"table": table.fingerprint})


def _of(classes: list[ClassName], labels: npt.NDArray[np.float32]) -> Vocabulary:
    if len(classes) == 1:
        raise ParamsError(
            f"dataset: MKT learns which of two labels is rather in an image, and {classes[0].name!r} is the only seen "
            "one; name more classes"
        )
    return Vocabulary([item.name for item in classes], [item.prompt for item in classes], labels)
