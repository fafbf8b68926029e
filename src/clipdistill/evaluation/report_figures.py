"""The figures of the report page, from the metrics files; a file that is missing leaves its part empty."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipdistill.errors import ArtifactError
from clipdistill.evaluation.charts import Series
from clipdistill.evaluation.summary import CELLS, LABELS, METHODS, THRESHOLDS, open_rows, read_metrics

ORDER = ("teacher", "global", "teacher_views", "teacher_dense", "cdul", "dense", "ccd", "supervised")
"""Methods as the page shows them: the two bounds among the others, mostly from the worst to the best."""

CURVES = {
    "val_map": "mAP on the evaluation split",
    "label_map": "mAP of the training labels",
    "loss": "Training loss",
}


@dataclass(frozen=True, slots=True)
class Method:
    """What the evaluation of one method gave.

    Attributes:
        key: for example "cdul".
        name: for people.
        figures: content of metrics/<method>.json below "val"; numbers in percent, None where undefined.
    """

    key: str
    name: str
    figures: dict[str, Any]

    @property
    def map(self) -> float | None:
        """Mean average precision, percent; None without ground truth."""
        value: float | None = self.figures.get("mAP")
        return value

    def f1(self, name: str, kind: str) -> float | None:
        """F1 of other predictions than those at the common threshold, percent; None where it is not known.

        Args:
            name: CF1 or OF1.
            kind: "own", "oracle", or such as "top3".
        """
        value: float | None = self.figures.get(kind, {}).get(name)
        return value

    @property
    def stopping(self) -> str | None:
        """What a stopping rule chose, where there was one and it can be judged."""
        figures = self.figures
        if figures.get("mAP") is None or figures.get("last_mAP") is None or figures.get("oracle_mAP") is None:
            return None
        return (
            f"{self.name}: the stopping rule, which sees no ground truth, kept epoch {figures['epoch']} "
            f"({figures['mAP']:.2f} mAP); the last epoch, {figures['last_epoch']}, has {figures['last_mAP']:.2f}, the "
            f"best by ground truth, {figures['oracle_epoch']}, has {figures['oracle_mAP']:.2f}."
        )


@dataclass(frozen=True, slots=True)
class LabelTrack:
    """Quality of a method's labels on the training split, step by step.

    Attributes:
        key: of the method.
        name: for people.
        steps: (name, mAP in percent).
    """

    key: str
    name: str
    steps: list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves of all students, by epoch."""

    title: str
    series: list[Series]


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of a run.

    Attributes:
        dataset: content of metrics/format.json; may be empty.
        methods: those that were evaluated, in the page's order.
        labels: tracks with at least one step.
        curves: charts with at least one point.
        precision: precision over recall of the evaluated methods, percent, all classes in one ranking.
        classes: average precision by class name and method, percent; classes without positives are not in it.
        opened: rows of the open vocabulary: name for people, and figures by zsl and gzsl.
    """

    dataset: dict[str, Any]
    methods: list[Method]
    labels: list[LabelTrack]
    curves: list[Chart]
    precision: list[Series]
    classes: dict[str, dict[str, float]]
    opened: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def open_columns(self) -> list[tuple[str, str]]:
        """Columns of the open vocabulary: kind and figure, such as zsl and mAP."""
        found = [(kind, key) for _, row in self.opened for kind in ("zsl", "gzsl") for key in row.get(kind, {})]
        return [pair for pair in dict.fromkeys(found) if pair[1] == "mAP" or pair[1].startswith("F1_")]

    @property
    def top(self) -> str | None:
        """Key of the figures of the k highest scores, for example "top3"."""
        keys = (key for method in self.methods for key in method.figures if key.startswith("top"))
        return next(keys, None)

    @property
    def thresholds(self) -> list[str]:
        """Which thresholds of each class there are figures of: "own", "oracle"."""
        return [name for name in THRESHOLDS if any(name in method.figures for method in self.methods)]


def read(folder: Path) -> Figures:
    """Read the metrics of a run.

    Args:
        folder: of the metrics files.

    Raises:
        ArtifactError: a file is damaged; the text names it.
    """
    found = ((key, read_metrics(folder / f"{key}.json").get("val")) for key in ORDER)
    methods = [Method(key, METHODS[key], figures) for key, figures in found if figures is not None]
    tracks = [
        _aggregated_labels(folder, "cdul", "CDUL", LABELS),
        _aggregated_labels(folder, "dense", "CDUL, cells", CELLS),
        _ccd_labels(folder),
    ]
    return Figures(
        dataset=read_metrics(folder / "format.json"),
        methods=methods,
        labels=[track for track in tracks if track.steps],
        curves=[chart for name, title in CURVES.items() if (chart := _chart(folder, name, title)).series],
        precision=_precision(folder, [method.key for method in methods]),
        classes=_classes(folder, [method.key for method in methods]),
        opened=open_rows(read_metrics(folder / "mkt.json")),
    )


def _aggregated_labels(folder: Path, method: str, name: str, states: dict[str, str]) -> LabelTrack:
    """Labels that are made of CLIP's views, and refined in training: by key of the first ones, what they are."""
    first = read_metrics(folder / "labels" / f"{method}.json").get("train", {})
    refined = read_metrics(folder / "train" / f"{method}.json").get("train", {}).get("refined_mAP")
    steps = [*((text, first.get(key)) for key, text in states.items()), ("refined while the student learned", refined)]
    return LabelTrack(method, name, [(text, value) for text, value in steps if value is not None])


def _ccd_labels(folder: Path) -> LabelTrack:
    labels = read_metrics(folder / "labels" / "ccd.json").get("train", {})
    rounds = {key: f"after round {key[5:-4]}" for key in labels if key.startswith("round")}
    names = {"initial_mAP": "at the start", **rounds}
    steps = [(text, labels.get(key)) for key, text in names.items()]
    return LabelTrack("ccd", "CCD", [(text, value) for text, value in steps if value is not None])


def _chart(folder: Path, name: str, title: str) -> Chart:
    series = []
    for key in ORDER:
        if name == "label_map" and key == "supervised":
            # Its labels are the ground truth: 100 throughout, a line that flattens all others.
            continue
        points = tuple(_points(folder / "curves" / key / "plots" / "metrics" / f"{name}.tsv", "\t", "step", name))
        if points:
            series.append(Series(key, METHODS[key], points))
    return Chart(title, series)


def _precision(folder: Path, methods: list[str]) -> list[Series]:
    files = {key: folder / "precision_recall" / f"{key}.csv" for key in methods}
    curves = {key: tuple(_points(file, ",", "recall", "precision")) for key, file in files.items()}
    return [Series(key, METHODS[key], points) for key, points in curves.items() if points]


def _points(path: Path, delimiter: str, across: str, up: str) -> Iterator[tuple[float, float]]:
    for row in _rows(path, delimiter):
        with _naming(path):
            point = (float(row[across]), float(row[up]))
        if all(map(math.isfinite, point)):
            yield point


def _classes(folder: Path, methods: list[str]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for key in methods:
        path = folder / "average_precision" / f"{key}.csv"
        for row in _rows(path, ","):
            with _naming(path):
                table.setdefault(row["class"], {})[key] = float(row["AP"])
    return table


def _rows(path: Path, delimiter: str) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with _naming(path), path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter=delimiter))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a damaged table raises within a `with` block into an error that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError, csv.Error) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}): run `dvc repro`") from None
