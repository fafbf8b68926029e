"""A run's metrics files and gallery, made up."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from clipdistill import store
from clipdistill.evaluation import gallery, precision_recall, report_page
from clipdistill.evaluation.gallery import Gallery, Group, Picture, Said
from clipdistill.evaluation.report_figures import ORDER
from clipdistill.evaluation.run_record import StageTime

STUDENTS = ("global", "cdul", "ccd", "supervised")
HOSTILE = "<script>alert(1)</script>"
QUOTED = """it's a "photo" & <b>.jpg"""

RUN = report_page.Run(
    dataset="made",
    commit="0123456789ab",
    experiment=None,
    versions={"torch": "2.15.0"},
    params="dataset:\n  name: made\n",
    summary={"Teacher": "RN50 openai"},
    times=[StageTime("embed@global", 95.0, "2026-01-02T03:04:05+00:00", {"views": 9500})],
    unrecorded=["format"],
)
WIDE_RUN = replace(
    RUN,
    commit="0123456789ab, with changes in code or parameters",
    experiment="an-experiment-with-a-long-name-" + "x" * 40,
    versions={"a_package_with_a_long_name": "2.15.0.dev20260102+cu130.long.local.version"},
    times=[
        StageTime(
            f"predict_teacher@{method}", seconds, RUN.times[0].finished, {"views": 12_345_678, "images": 1_234_567}
        )
        for method, seconds in (
            ("teacher_views", 10_000.0),
            ("a_method_with_a_long_name_" + "x" * 40, 1000.0),
            ("b", 12.0),
        )
    ],
    unrecorded=["a_stage_with_a_long_name@" + "x" * 60, *RUN.unrecorded],
)


def write_metrics(folder: Path, names: list[str], methods: tuple[str, ...] = ORDER, *, labelled: bool = True) -> None:
    """Write the metrics files of a run; method m has mAP 50 + 5 m, and class c at most 7 more or less."""
    for number, key in enumerate(methods):
        figures: dict[str, object] = {"images": 9, "labelled": 0}
        if labelled:
            value = 50.0 + 5 * number
            figures = dict.fromkeys(("CP", "CR", "CF1", "OP", "OR", "OF1"), 40.0)
            figures = {"mAP": value, **figures, "top3": dict(figures), "oracle": {"CF1": 71.0 + number, "OF1": 81.0}}
            figures |= {"own": {"CF1": 11.0 + number, "OF1": 21.0}} if key in STUDENTS else {}
        store.write_json(folder / f"{key}.json", {"val": figures})
        _write_classes(folder / "average_precision" / f"{key}.csv", names if labelled else [], 50.0 + 5 * number)
        if key in STUDENTS:
            _write_curves(folder / "curves" / key / "plots" / "metrics", labelled)
    value = 60.0 if labelled else None
    first = {"global_mAP": value, "aggregate_mAP": value, "final_mAP": value}
    store.write_json(folder / "labels" / "cdul.json", {"train": first})
    store.write_json(folder / "labels" / "ccd.json", {"train": {"initial_mAP": value, "round1_mAP": value}})
    store.write_json(folder / "train" / "cdul.json", {"train": {"refined_mAP": value} if labelled else {}})
    sizes = {"images": 12_000, "labelled_images": 0}
    store.write_json(folder / "format.json", {"classes": len(names), "train": sizes, "val": {"images": 9}})


def _write_classes(path: Path, names: list[str], middle: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["class", "AP"])
        for number, name in enumerate(names):
            writer.writerow([name, f"{middle + (number * middle) % 15 - 7:.2f}"])


def write_precision(folder: Path, key: str) -> None:
    """Curve of precision over recall of a method, as stage `evaluate` writes it."""
    curve = np.array([[10.0, 100.0, 0.9], [60.5, 80.0, 0.5], [100.0, 40.0, 0.1]])
    precision_recall.write(folder / "precision_recall" / f"{key}.csv", curve)


def _write_curves(folder: Path, labelled: bool) -> None:
    folder.mkdir(parents=True)
    for name in ("loss", "val_map", "label_map") if labelled else ("loss",):
        rows = [f"{epoch}\t{100 - 50 / epoch}" for epoch in range(1, 6)]
        (folder / f"{name}.tsv").write_text("\n".join([f"step\t{name}", *rows]) + "\n")


def make_gallery(names: list[str], images: int = 24, *, labelled: bool = True) -> Gallery:
    """Noise, the largest that a picture can be, with as many tags as an image can have."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, (images, len(names)), dtype=np.int8)
    truth = truth if labelled else np.full_like(truth, -1)
    said: dict[str, list[Said]] = {}
    thresholds = np.full(len(names), 0.5)
    for method in ORDER:
        scores = generator.random((images, len(names)), dtype=np.float32)
        said[method] = [gallery.tags(scores[row], truth[row], names, thresholds) for row in range(images)]
        for each in said[method] if method in STUDENTS else []:
            maps = generator.normal(size=(len(each.tags), 10, 10)).astype(np.float32)
            heat = {tag.column: gallery.heatmap(cam, tag.score) for tag, cam in zip(each.tags, maps, strict=True)}
            each.heat.update(heat)
    pictures = []
    for row in range(images):
        pixels = generator.integers(0, 256, (300, 400 - 20 * row % 300, 3), dtype=np.uint8)
        small = gallery.thumbnail(Image.fromarray(pixels))
        pictures.append(Picture(f"{row} {QUOTED}", QUOTED, *small, {key: each[row] for key, each in said.items()}))
    groups = [Group("Best", pictures[:8]), Group("Worst", pictures[8:])]
    return Gallery("ccd", list(ORDER), list(STUDENTS), 0.5, labelled, groups)
