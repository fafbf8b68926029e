"""Thresholds from ground truth: where some images are labelled, they say better than pseudo labels where to cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from clipdistill import distributed, store
from clipdistill.application import console
from clipdistill.application.student import BATCH, Scores, Student
from clipdistill.datasets.images import UnreadableImageError
from clipdistill.datasets.table import ImageTable, Labels, read_labels
from clipdistill.errors import ArtifactError, DataError, ParamsError
from clipdistill.evaluation import thresholds
from clipdistill.evaluation.metrics import figures_at, mean_average_precision
from clipdistill.evaluation.report import rounded
from clipdistill.students import model_card, model_folder, student_yaml

Figures = dict[str, float | None]


def calibrate(model: Path, split: Path, out: Path, compute: distributed.Compute) -> tuple[Figures, Figures]:
    """Write a copy of a student with thresholds that are best for a labelled split.

    The model folder itself stays as it is: the pipeline knows it by its bytes.

    Args:
        model: model folder.
        split: folder of the pipeline with `images.parquet` and `labels.zarr`, such as data/<dataset>/val.
        out: folder to make.
        compute: device, threads, batch size.

    Returns:
        mAP, CF1, OF1 on the split, percent: with the thresholds before, and with those that were written.

    Raises:
        ParamsError: `out` exists.
        DataError: no label of the split is known.
        ArtifactError: the folders do not hold what they should, or their classes differ.
        UnreadableImageError: an image of the split is gone, changed or broken.
    """
    if out.exists():
        raise ParamsError(f"--out: {out} exists, and a model folder is never changed in place; name a new folder")
    torch.set_num_threads(compute.thread_count())
    student = Student.load(model, compute.device)
    table = ImageTable.load(split / "images.parquet")
    labels = _labels(split / "labels.zarr", table, student.card.classes)
    scores = _scores(student, table, compute)
    chosen = thresholds.best_f1(scores, labels).tolist()
    after = _figures(scores, labels, chosen)
    images = int((labels >= 0).any(axis=1).sum())
    calibration = {
        "rule": thresholds.F1,
        "labels": f"the ground truth of {images} images",
        "table": table.fingerprint,
    }
    measured = student_yaml.Evaluation(
        dataset=split.parent.name, split=split.name, images=images, chose_thresholds=True, figures=after
    )
    before = _figures(scores, labels, student.card.thresholds)
    student.card = student.card.model_copy(
        update={"thresholds": chosen, "calibration": calibration, "evaluation": measured}
    )
    model_folder.save(out, student.network, student.card)
    model_card.write(out)
    console.tell_unchosen(student.unchosen)
    return before, after


def _labels(path: Path, table: ImageTable, classes: list[str]) -> Labels:
    labels = read_labels(path, table)
    named = store.read_group(path).provenance.get("classes")
    if named != classes:
        raise ArtifactError(
            f"{path} labels the classes {named}, but the student knows {classes}: calibrate it on the data set that it "
            "was trained for"
        )
    if not (labels >= 0).any():
        raise DataError(f"{path} holds no known label: there is nothing to calibrate by")
    return labels


def _scores(student: Student, table: ImageTable, compute: distributed.Compute) -> Scores:
    rows, found = range(len(table)), []
    with console.progress(len(table), "images", free=True) as advance:
        for _, scores in student.stream(rows, compute.batch_size or BATCH, compute.worker_count(), table.open):
            if isinstance(scores, UnreadableImageError):
                raise scores
            found.append(scores)
            advance(True)
    return np.stack(found)


def _figures(scores: Scores, labels: Labels, chosen: list[float]) -> Figures:
    found = figures_at(scores, labels, chosen)
    figures = {"mAP": mean_average_precision(scores, labels)[0], "CF1": found["CF1"], "OF1": found["OF1"]}
    return {name: rounded(value) for name, value in figures.items()}
