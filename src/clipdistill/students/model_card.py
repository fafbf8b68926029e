"""The model card of a student: what a person, or a model hub, reads first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

FILE = "README.md"

_FRONT_MATTER = {
    "library_name": "clipdistill",
    "pipeline_tag": "image-classification",
    "tags": ["multi-label", "image-classification", "knowledge-distillation", "clip"],
}

_TEXT = """\
---
{front}---

# Multi-label classifier of {count} classes

A student of clipdistill, which distils CLIP into classifiers that no longer need it. A class activation map comes with
every score. `student.yaml` holds all of this for programs.

| | |
| --- | --- |
| network | {backbone} of torchvision, output stride {output_stride}, first weights: {backbone_weights} |
| input | RGB, the whole image squashed to {image_size} x {image_size} pixels |
| scores | {head} |
| weights | `student.safetensors`, SHA-256 `{sha256}` |

## How to use it

```
clipdistill predict FOLDER photo.jpg           # FOLDER: this folder
clipdistill heatmap FOLDER photo.jpg           # where the student sees the class
clipdistill export FOLDER --onnx student.onnx
```

```python
from clipdistill import Student

prediction = Student.load("FOLDER").predict(["photo.jpg"])
prediction.names    # classes present in each image, the surest first
prediction.scores   # float32 [images, classes], in [0, 1]
```

## Classes and thresholds

{calibration}

| class | threshold |
| --- | --- |
{classes}

## How good it is

{metrics}

## What it was made from

```yaml
{provenance}```
"""

_HEADS = {
    "sigmoid": "in [0, 1], each class by itself",
    "softmax": "in [0, 1], the classes compete: an image's scores sum to 1",
}


def render(card: Mapping[str, Any]) -> str:
    """Write the card of a student: Markdown with YAML front matter, as model hubs read it.

    Args:
        card: content of `student.yaml`.

    Returns:
        Text that depends on the content alone.
    """
    calibration = card["calibration"]
    metrics = calibration.get("metrics")
    front = _FRONT_MATTER | ({"model-index": _index(card, metrics)} if metrics else {})
    rows = zip(card["classes"], card["thresholds"], strict=True)
    return _TEXT.format(
        front=_yaml(front),
        count=len(card["classes"]),
        backbone=card["backbone"],
        backbone_weights=_cell(card["backbone_weights"]),
        output_stride=card["output_stride"],
        image_size=card["preprocessing"]["image_size"],
        head=_HEADS[card["head"]],
        sha256=card["sha256"],
        calibration=_calibration(calibration),
        classes="\n".join(f"| {_cell(name)} | {threshold:.4f} |" for name, threshold in rows),
        metrics=_metrics(metrics),
        provenance=_yaml(card["provenance"]),
    )


def _calibration(calibration: Mapping[str, Any]) -> str:
    if not calibration:
        return "A class counts as present from score 0.5 on; no threshold was chosen."
    return (
        "A class counts as present from its threshold on: the one with the highest "
        f"{calibration['rule']} against {calibration['labels']}."
    )


def _metrics(metrics: Mapping[str, float | None] | None) -> str:
    if metrics is None:
        return (
            "The pipeline that trained the student evaluates it afterwards, so no figure can stand here: those of its "
            "method are in `metrics/` of that repository, and those of the labels it learned from in "
            "`metrics/labels/`. `clipdistill calibrate` writes a folder whose card holds figures."
        )
    rows = [f"| {name} | {'-' if value is None else f'{value:.2f}'} |" for name, value in metrics.items()]
    note = "Percent, on the very images whose ground truth chose the thresholds: F1 is a little better than elsewhere."
    return "\n".join([note, "", "| figure | value |", "| --- | --- |", *rows])


def _index(card: Mapping[str, Any], metrics: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Figures in the form of a hub's leaderboard."""
    figures = [{"type": name, "value": value} for name, value in metrics.items() if value is not None]
    data = {"name": "calibration split", "type": "image-folder", "revision": card["calibration"]["table"][:12]}
    result = {"task": {"type": "image-classification"}, "dataset": data, "metrics": figures}
    return [{"name": f"{card['backbone']}, {len(card['classes'])} classes", "results": [result]}]


def _cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=110)
