"""The model card of a student: what a person, or a model hub, reads first.

It is for people and hubs, and says nothing that is not in `student.yaml`: no program reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from clipdistill.evaluation.thresholds import DEFAULT
from clipdistill.store import write_atomically
from clipdistill.students import student_yaml
from clipdistill.students.student_yaml import Card, Evaluation

FILE = "README.md"

_FRONT_MATTER = {
    "library_name": "clipdistill",
    "pipeline_tag": "image-classification",
    "tags": ["multi-label", "image-classification", "knowledge-distillation", "clip"],
}

_TEXT = """\
---
{front}---

# {title}

A student of clipdistill, which distils CLIP into classifiers that no longer need it. A class activation map comes with
every score. `student.yaml` holds all of this for programs.

| | |
| --- | --- |
{about}
| network | {backbone} of torchvision, output stride {output_stride}, first weights: {backbone_weights} |
| input | RGB, the whole image squashed to {image_size} x {image_size} pixels |
| scores | {head} |
| weights | `student.safetensors`, SHA-256 `{sha256}` |

## How good it is

{evaluation}

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

## What it was made from

```yaml
{provenance}```
"""

_HEADS = {
    "sigmoid": "in [0, 1], each class by itself",
    "softmax": "in [0, 1], the classes compete: an image's scores sum to 1",
}
_ABOUT = {
    "method": "method",
    "dataset": "learned from the images of",
    "teacher": "teacher",
    "base_model": "distilled from",
    "license": "license",
}


def write(folder: Path) -> None:
    """Write the card of the student in a model folder beside it.

    Raises:
        ArtifactError: the folder holds no `student.yaml`, or the disk refuses.
    """
    write_atomically(folder / FILE, render(student_yaml.read(folder)).encode())


def render(card: Card) -> str:
    """Compose the card of a student: Markdown with YAML front matter, as model hubs read it.

    Args:
        card: content of `student.yaml`.

    Returns:
        Text that depends on the content alone.
    """
    title = f"Multi-label classifier of {len(card.classes)} classes"
    return _TEXT.format(
        front=as_yaml(front_matter(card.about, card.evaluation, title)),
        title=title,
        about=about_rows(card.about),
        backbone=card.backbone,
        backbone_weights=cell(card.backbone_weights),
        output_stride=card.output_stride,
        image_size=card.preprocessing.image_size,
        head=_HEADS[card.head],
        sha256=card.sha256,
        evaluation=measured(card.evaluation),
        calibration=_calibration(card),
        classes="\n".join(_thresholds(card)),
        provenance=as_yaml(card.provenance),
    )


def front_matter(about: Mapping[str, str], found: Evaluation | None, title: str) -> dict[str, Any]:
    """What model hubs read: kind, license, and figures where there are any."""
    front = dict(_FRONT_MATTER)
    front |= {key: about[key] for key in ("license", "base_model") if about.get(key)}
    figures = [] if found is None else [(name, value) for name, value in found.figures.items() if value is not None]
    if found is None or not figures:
        return front
    data = {"name": found.dataset, "type": found.dataset, "split": found.split}
    metrics = [{"type": name, "value": value} for name, value in figures]
    result = {"task": {"type": "image-classification"}, "dataset": data, "metrics": metrics}
    return front | {"model-index": [{"name": title, "results": [result]}]}


def about_rows(about: Mapping[str, str]) -> str:
    """Rows of a table that say method, data set, teacher, license."""
    rows = [f"| {_ABOUT[key]} | {cell(value)} |" for key, value in about.items() if key in _ABOUT]
    return "\n".join(rows) or "| method | not said |"


def measured(found: Evaluation | None) -> str:
    """Say how good a student was found to be."""
    if found is None:
        return "It was not measured. The pipeline's stage `model` writes a folder whose card holds figures."
    if not any(value is not None for value in found.figures.values()):
        return f"There is no ground truth for the split {found.split} of {cell(found.dataset)}: it was not measured."
    caution = (
        "The same images chose the thresholds, so F1 is a little better here than elsewhere."
        if found.chose_thresholds
        else "None of these images had a part in the training or in the thresholds."
    )
    rows = [f"| {name} | {'-' if value is None else f'{value:.2f}'} |" for name, value in found.figures.items()]
    head = f"Percent, on {found.images} images of the split {found.split} of {cell(found.dataset)}. {caution}"
    return "\n".join([head, "", "| figure | value |", "| --- | --- |", *rows])


def _calibration(card: Card) -> str:
    if not card.calibration:
        return "A class counts as present from score 0.5 on; no threshold was chosen."
    return (
        f"A class counts as present from its threshold on. The rule: {card.calibration['rule']}; by "
        f"{card.calibration['labels']}."
    )


def _thresholds(card: Card) -> list[str]:
    rows = []
    for name, threshold in zip(card.classes, card.thresholds, strict=True):
        kept = card.calibration and threshold == DEFAULT
        rows.append(f"| {cell(name)} | {threshold:.4f}{' (none could be chosen)' if kept else ''} |")
    return rows


def cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def as_yaml(content: dict[str, Any]) -> str:
    """Content as YAML."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
