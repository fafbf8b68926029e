"""Where a student sees a class: its activation map over the image."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from PIL import Image

from clipdistill.application.image_files import open_image
from clipdistill.application.student import Scorer
from clipdistill.errors import ParamsError
from clipdistill.evaluation.heat import overlay


@dataclass(frozen=True, slots=True)
class Heatmap:
    """A map over its image.

    Attributes:
        name: of the class.
        score: of the class, in [0, 1].
        picture: RGB, of the image's own size.
    """

    name: str
    score: float
    picture: Image.Image


def heatmap(student: Scorer, image: Path, name: str | None) -> Heatmap:
    """Draw where a class is: its class activation map, or the cosines of the patches.

    Args:
        student: loaded.
        image: file.
        name: of the class; None: the one with the highest score.

    Raises:
        ParamsError: the student knows no such class.
        UnreadableImageError: the file is missing or no whole image.
    """
    if name is not None and name not in student.classes:
        near = get_close_matches(name, student.classes, n=3) or student.classes[:8]
        raise ParamsError(f"--class: the student knows no {name!r}; it knows for example {', '.join(near)}")
    photo = open_image(image)
    scores, maps = student.look(photo)
    column = int(scores.argmax()) if name is None else student.classes.index(name)
    return Heatmap(student.classes[column], float(scores[column]), overlay(photo, maps[column]))
