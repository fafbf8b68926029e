"""A student that is ready for use: as its training left it, with the figures that were measured since and a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipdistill.errors import ArtifactError
from clipdistill.params import NO_ADAPTER, ClipParams, EvaluateParams
from clipdistill.store import file_sha256, write_atomically
from clipdistill.students import model_card, open_card, open_model_card, student_yaml
from clipdistill.students.student_yaml import CURE, FILE, WEIGHTS, Evaluation


def finish(student: Path, folder: Path, about: Mapping[str, str], evaluation: Evaluation) -> None:
    """Make a model folder of what a training left; `student.yaml` is written last but for the card made from it.

    Args:
        student: folder of the training.
        folder: model folder, made where it is missing.
        about: what a model hub asks, by the keys that `student_yaml.Card.about` names; empty values are left out.
        evaluation: figures of this very student.

    Raises:
        ArtifactError: the folder of the training holds no whole student, or the disk refuses.
    """
    card = student_yaml.read(student)
    weights = student / WEIGHTS
    if not weights.is_file() or file_sha256(weights) != card.sha256:
        raise ArtifactError(f"{weights} is not what {student / FILE} was written for: {CURE}")
    write_atomically(folder / WEIGHTS, weights.read_bytes())
    said = {key: value for key, value in about.items() if value}
    student_yaml.write(folder, card.model_copy(update={"about": said, "evaluation": evaluation}))
    model_card.write(folder)


def finish_open(student: Path, folder: Path, about: Mapping[str, str], evaluation: Evaluation) -> None:
    """Make a folder ready for use of what the training of an open-vocabulary student left, as `finish` does.

    Raises:
        ArtifactError: the folder of the training holds no whole student, or the disk refuses.
    """
    card = open_card.read(student)
    weights = student / open_card.WEIGHTS
    if not weights.is_file() or file_sha256(weights) != card.sha256:
        raise ArtifactError(f"{weights} is not what {student / open_card.FILE} was written for: {CURE}")
    write_atomically(folder / open_card.WEIGHTS, weights.read_bytes())
    said = {key: value for key, value in about.items() if value}
    open_card.write(folder, card.model_copy(update={"about": said, "evaluation": evaluation}))
    open_model_card.write(folder)


def open_figures(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Pick a card's figures from metrics/mkt.json: percent by name, zero-shot and generalised."""
    kinds = {kind: metrics[kind] for kind in ("zsl", "gzsl") if metrics.get(kind)}
    return {
        f"{kind} {name}": value
        for kind, found in kinds.items()
        for name, value in found.items()
        if name == "mAP" or name.startswith("F1_")
    }


def figures(metrics: Mapping[str, Any], params: EvaluateParams) -> dict[str, float | None]:
    """Pick a card's figures from a metrics file.

    Args:
        metrics: of one split, as `evaluation.report` writes them; without ground truth it holds no figure.
        params: section `evaluate`, under which they were made.

    Returns:
        Percent by name: mAP; CF1 and OF1 at the student's own thresholds, and at the one threshold of all classes.
    """
    if "mAP" not in metrics:
        return {}
    own = metrics.get("own", {})
    at = f"at {params.threshold:g}"
    return {
        "mAP": metrics["mAP"],
        "CF1": own.get("CF1"),
        "OF1": own.get("OF1"),
        f"CF1 {at}": metrics["CF1"],
        f"OF1 {at}": metrics["OF1"],
    }


def teacher(params: ClipParams) -> str:
    """Say in a phrase which CLIP the labels are from."""
    weights = {
        "open_clip": f"weights {params.pretrained} of open_clip",
        "file": f"weights with SHA-256 {params.sha256}",
        "scenes": "trained by the pipeline on drawings",
    }
    adapted = "" if params.adapter == NO_ADAPTER else ", with an adapter by TTD"
    return f"CLIP {params.model}, {weights[params.source]}{adapted}"
