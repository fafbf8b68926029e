"""The few figures that a person looks for first: a table for the terminal, and the metrics that DVC compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipdistill.errors import ArtifactError

METHODS = {
    "global": "student on global labels (lower bound)",
    "teacher": "CLIP, whole image",
    "teacher_views": "CLIP, whole image and snippets",
    "teacher_dense": "CLIP, whole image and cells of its map",
    "cdul": "CDUL student",
    "dense": "CDUL student, cells for snippets",
    "ccd": "CCD student",
    "supervised": "student on ground truth (upper bound)",
}
CELLS = {"aggregate_mAP": "cells of CLIP's map, aggregated", "final_mAP": "whole image and cells"}
OPEN_METHOD = "MKT student (open vocabulary)"
OPEN_ROWS = {
    "teacher_global": "CLIP, whole image",
    "teacher": "CLIP, whole image and patches",
    "untuned": "MKT student, prompts as written",
    "": OPEN_METHOD,
}
"""Rows of metrics/mkt.json; the student's own figures are at its top."""

TAG_ROWS = {
    "image": "words chosen by the whole image",
    "text": "words chosen by the caption",
    "pixel": "words chosen by pixels",
    "pixel_ttd": "words chosen by pixels, TTD's adapter",
}
MAP_ROWS = {"frozen": "CLIP", "ttd": "CLIP with TTD's adapter"}
"""Rows of metrics/ttd.json."""

LABELS = {"global_mAP": "whole image", "aggregate_mAP": "snippets, aggregated", "final_mAP": "both, the first labels"}
THRESHOLDS = ("own", "oracle")
"""Which thresholds of each class F1 is measured at: the student's, and those that are best on the ground truth."""

_LABELS = {
    "global": ("labels/global.json", "global_mAP"),
    "cdul": ("labels/cdul.json", "final_mAP"),
    "dense": ("labels/dense.json", "final_mAP"),
    "cdul_refined": ("train/cdul.json", "refined_mAP"),
    "ccd": ("labels/ccd.json", "refined_mAP"),
}
_WIDTH = 40


def figures(folder: Path) -> dict[str, dict[str, float]]:
    """Collect one figure a method: each becomes a column of `dvc exp show`.

    Args:
        folder: of the metrics files, as `render` takes it.

    Returns:
        mAP on the evaluation split by method, label_mAP on the training split by kind of label, zsl_mAP and gzsl_mAP
        of the open vocabulary, tag_F1, caption_IoU and mIoU of TTD, percent; a figure that is not known is left out.

    Raises:
        ArtifactError: a file is no JSON.
    """
    predicted = {name: read_metrics(folder / f"{name}.json").get("val", {}).get("mAP") for name in METHODS}
    labels = {name: read_metrics(folder / file).get("train", {}).get(key) for name, (file, key) in _LABELS.items()}
    opened = read_metrics(folder / "mkt.json")
    found = {"mAP": _known(predicted), "label_mAP": _known(labels)}
    for kind in ("zsl", "gzsl"):
        rows = {name or "mkt": _of_row(opened, name).get(kind, {}).get("mAP") for name in OPEN_ROWS}
        found |= {f"{kind}_mAP": known} if (known := _known(rows)) else {}
    for key, values in _of_ttd(read_metrics(folder / "ttd.json")).items():
        found |= {key: known} if (known := _known(values)) else {}
    return found


def _of_ttd(figures: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """One figure a row of each table of metrics/ttd.json; empty where TTD was left out."""
    tags, maps, segmented = (figures.get(key, {}) for key in ("tags", "caption_IoU", "segmentation"))
    return {
        "tag_F1": {row: tags.get(row, {}).get("F1") for row in TAG_ROWS},
        "caption_IoU": {row: maps.get(row, {}).get("IoU") for row in MAP_ROWS},
        "mIoU": {row: segmented.get(row, {}).get("mIoU") for row in MAP_ROWS},
    }


def _of_row(opened: dict[str, Any], name: str) -> dict[str, Any]:
    row: dict[str, Any] = opened.get(name, {}) if name else opened
    return row


def _known(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def render(folder: Path) -> str:
    """Collect the metrics files into a table, the methods from worst to best.

    Args:
        folder: of `<method>.json`, `labels/cdul.json` and `train/cdul.json`.

    Returns:
        Lines of text; a figure that is not known is a dash.

    Raises:
        ArtifactError: there is no metrics file, or one is no JSON.
    """
    found = {name: read_metrics(folder / f"{name}.json").get("val") for name in METHODS}
    rows = [(METHODS[name], figures) for name, figures in found.items() if figures is not None]
    if not rows:
        raise ArtifactError(f"{folder} holds no metrics: run `dvc repro`")
    rows.sort(key=lambda row: row[1].get("mAP") or 0.0)
    lines = [f"{'evaluation split, percent':<{_WIDTH}}{'mAP':>8}{'CF1':>8}{'OF1':>8}"]
    lines += [_line(name, [figures.get(key) for key in ("mAP", "CF1", "OF1")]) for name, figures in rows]
    lines += _at_thresholds_of_each_class(rows)
    labels = read_metrics(folder / "labels" / "cdul.json").get("train", {})
    lines += ["", f"{'pseudo labels of the training split':<{_WIDTH}}{'mAP':>8}"]
    lines += [_line(text, [labels[key]]) for key, text in LABELS.items() if key in labels]
    training = read_metrics(folder / "train" / "cdul.json").get("train", {})
    if "refined_mAP" in training:
        lines.append(_line("refined while the student learned", [training["refined_mAP"]]))
    cells = read_metrics(folder / "labels" / "dense.json").get("train", {})
    lines += [_line(text, [cells[key]]) for key, text in CELLS.items() if key in cells]
    updated = read_metrics(folder / "labels" / "ccd.json").get("train", {})
    lines += [_line(f"CCD, {key.removesuffix('_mAP')}", [updated[key]]) for key in updated if key.startswith("round")]
    lines += _open_vocabulary(read_metrics(folder / "mkt.json"))
    lines += _words_and_maps(read_metrics(folder / "ttd.json"))
    return "\n".join(lines)


def open_rows(opened: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Rows of metrics/mkt.json that hold figures: name for people, and figures by zsl and gzsl."""
    rows = [(text, _of_row(opened, name)) for name, text in OPEN_ROWS.items()]
    return [(text, {key: row[key] for key in ("zsl", "gzsl") if key in row}) for text, row in rows if row.get("gzsl")]


def _open_vocabulary(opened: dict[str, Any]) -> list[str]:
    """Zero-shot figures, of labels that training never saw, and generalised ones, of all labels."""
    rows = open_rows(opened)
    if not rows:
        return []
    kinds = [kind for kind in ("zsl", "gzsl") if any(row.get(kind) for _, row in rows)]
    at = [key for key in rows[0][1]["gzsl"] if key.startswith("F1_")][:1]
    keys = [(kind, key) for kind in kinds for key in ("mAP", *at)]
    heads = [f"{'open vocabulary, percent':<{_WIDTH}}" + "".join(f"{kind:>8}" for kind, _ in keys)]
    heads.append(" " * _WIDTH + "".join(f"{key:>8}" for _, key in keys))
    return ["", *heads, *(_line(text, [row.get(kind, {}).get(key) for kind, key in keys]) for text, row in rows)]


def _words_and_maps(figures: dict[str, Any]) -> list[str]:
    """TTD: words of captions, and maps of captions and of classes."""
    found = _of_ttd(figures)
    lines: list[str] = []
    if _known(found["tag_F1"]):
        keys = ("P", "R", "F1", "Acc")
        lines += ["", f"{'words of captions, percent':<{_WIDTH}}" + "".join(f"{key:>8}" for key in keys)]
        lines += [
            _line(text, [figures["tags"].get(row, {}).get(key) for key in keys]) for row, text in TAG_ROWS.items()
        ]
    if _known(found["caption_IoU"]) or _known(found["mIoU"]):
        lines += ["", f"{'maps, percent':<{_WIDTH}}{'caption IoU':>12}{'mIoU':>8}"]
        for row, text in MAP_ROWS.items():
            values = [found["caption_IoU"][row], found["mIoU"][row]]
            cells = ["-" if value is None else f"{value:.2f}" for value in values]
            lines.append(f"{text:<{_WIDTH}}{cells[0]:>12}{cells[1]:>8}")
    return lines


def _at_thresholds_of_each_class(rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """F1 of the methods where it is known: a table of its own, so that both fit a terminal of 80 columns."""
    keys = [(kind, name) for kind in THRESHOLDS for name in ("CF1", "OF1")]
    known = [row for row in rows if any(kind in row[1] for kind in THRESHOLDS)]
    if not known:
        return []
    heads = [f"{'at thresholds of each class, percent':<{_WIDTH}}" + "".join(f"{kind:>8}" for kind, _ in keys)]
    heads.append(" " * _WIDTH + "".join(f"{name:>8}" for _, name in keys))
    return ["", *heads, *(_line(text, [found.get(kind, {}).get(name) for kind, name in keys]) for text, found in known)]


def _line(name: str, values: list[float | None]) -> str:
    return f"{name:<{_WIDTH}}" + "".join(f"{'-' if value is None else f'{value:.2f}':>8}" for value in values)


def read_metrics(path: Path) -> dict[str, Any]:
    """Read a metrics file; a missing one is empty.

    Raises:
        ArtifactError: it is no JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON ({error}): run `dvc repro`") from None
    return content
