"""The model card of an open-vocabulary student: what a person, or a model hub, reads first."""

from __future__ import annotations

from pathlib import Path

from clipdistill.store import write_atomically
from clipdistill.students import open_card
from clipdistill.students.model_card import FILE, about_rows, as_yaml, cell, front_matter, measured
from clipdistill.students.open_card import OpenCard

_TEXT = """\
---
{front}---

# {title}

A student of clipdistill that scores images for any labels, in words: those it was trained on, and others.
`open_student.yaml` holds all of this for programs.

| | |
| --- | --- |
{about}
| image tower | {backbone}, first weights: {backbone_weights} |
| text encoder | that of {model}, with a context of {context} |
| input | RGB, the whole image squashed to {image_size} x {image_size} pixels |
| a score | {score} |
| weights | `open_student.safetensors`, SHA-256 `{sha256}` |

## How good it is

zsl: labels that are kept from every training, among one another. gzsl: all labels of the data set's open vocabulary.
P, R, F1 at k: exactly k labels predicted in every image. {evaluation}

## How to use it

```
clipdistill predict FOLDER photo.jpg --labels my_labels.txt     # a label a line
clipdistill heatmap FOLDER photo.jpg --class "red fish"
```

```python
from clipdistill import OpenStudent

student = OpenStudent.load("FOLDER", ["red fish", "boat"])
student.predict(["photo.jpg"]).names    # labels present in each image, the surest first
```

## Labels it was trained on

{seen}

## What it was made from

```yaml
{provenance}```
"""


def write(folder: Path) -> None:
    """Write the card of the student in a folder beside it.

    Raises:
        ArtifactError: the folder holds no `open_student.yaml`, or the disk refuses.
    """
    write_atomically(folder / FILE, render(open_card.read(folder)).encode())


def render(card: OpenCard) -> str:
    """Compose the card of a student: Markdown with YAML front matter, as model hubs read it."""
    title = "Multi-label classifier of open vocabulary"
    own = card.backbone == "clip"
    return _TEXT.format(
        front=as_yaml(front_matter(card.about, card.evaluation, title)),
        title=title,
        about=about_rows(card.about),
        backbone=f"that of {card.model}" if own else f"{card.backbone} of timm",
        backbone_weights=cell("CLIP's" if own else card.backbone_weights),
        model=card.model,
        context=f"{cell(card.prompt)!r}{', tuned' if card.tuned else ''}",
        score=f"sigmoid({card.scale:.4g} (s - {card.shift:.4f})), s = {1 - card.local:.3g} cosine of the image + "
        f"{card.local:g} mean cosine of the best patches, {card.k} a label",
        evaluation=measured(card.evaluation),
        seen=", ".join(cell(name) for name in card.seen),
        provenance=as_yaml(card.provenance),
        **card.model_dump(include={"image_size", "sha256"}),
    )
