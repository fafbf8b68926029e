"""A gallery of images with what was predicted in them: which images, which tags, small pictures and heatmaps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipdistill.evaluation.heat import coloured, scaled

Kind = Literal["right", "wrong", "missed", "predicted", "below"]
Scores = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int8]
Thresholds = npt.NDArray[np.float64]

THIRD = 8
"""Images in each of the three groups."""

MAX_TAGS = 4
"""Tags of a kind that are shown with an image; the others are counted."""

_SIDE, _QUALITY = 256, 75
_HEAT_SIDE, _HEAT_LEVELS = 24, 48
# Opacity of the hottest place, of 255: for a score of 0 and of 1. The coldest place is clear.
_FAINTEST, _DENSEST = 90, 210


class Tag(NamedTuple):
    """A class that is shown with an image.

    Attributes:
        column: of the class.
        name: of the class.
        kind: right, wrong or missed against the ground truth; predicted where that is unknown; below: nothing was
            predicted, and this is the likeliest class.
        score: in [0, 1].
    """

    column: int
    name: str
    kind: Kind
    score: float


@dataclass(frozen=True, slots=True)
class Said:
    """What one method says of one image.

    Attributes:
        tags: those that are shown.
        more: number of tags that are not shown.
        heat: PNG by column, of the tags whose places are known.
    """

    tags: list[Tag]
    more: int = 0
    heat: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of the gallery.

    Attributes:
        title: its id.
        file: path below the image root.
        thumbnail: JPEG.
        width: of the thumbnail, pixels.
        height: of the thumbnail, pixels.
        said: by method.
    """

    title: str
    file: str
    thumbnail: bytes
    width: int
    height: int
    said: dict[str, Said]


@dataclass(frozen=True, slots=True)
class Group:
    """Images that were chosen for one reason."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True, slots=True)
class Gallery:
    """All that the page shows of images.

    Attributes:
        judge: the method that the images were chosen by.
        methods: that said something, in the order of the page.
        own: those of them that predict a class from a threshold of its own on, as their students do at work.
        threshold: score from which the others predict a class.
        truth_known: whether the images were chosen by the ground truth.
        groups: without empty ones.
    """

    judge: str
    methods: list[str]
    own: list[str]
    threshold: float
    truth_known: bool
    groups: list[Group]


def choose(scores: Scores, truth: Labels, thresholds: Thresholds, third: int = THIRD) -> dict[str, list[int]]:
    """Choose the images to show, by scores and ground truth alone: equal inputs give equal choices.

    With ground truth an image's error is the mean of |label - score| over its known classes; only images with a
    positive label count, where there are any. Without it the error is how undecided the scores are, the mean of
    min(score, 1 - score), and images without a predicted class come last. Equal errors keep the order of the table.

    Args:
        scores: float32 [N, C], in [0, 1].
        truth: int8 [N, C]: 1, 0, or -1 unknown.
        thresholds: float64 [C], scores from which the classes are predicted.
        third: images a group, at most.

    Returns:
        Rows by the group's title: the smallest errors, the middle ones, the greatest with the worst first. With fewer
        images than the three groups hold each image is in one of them; a group may then be empty.
    """
    known = truth >= 0
    if known.any():
        filled = (truth == 1).any(axis=1)
        rows = np.flatnonzero(filled if filled.any() else known.any(axis=1))
        wrong = np.where(known, np.abs(truth - scores), 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
        titles = ("Best", "In the middle", "Worst")
    else:
        rows = np.arange(len(scores))
        wrong = np.minimum(scores, 1 - scores).mean(axis=1) + (scores < thresholds).all(axis=1)
        titles = ("Most decided", "In the middle", "Least decided")
    order = rows[np.argsort(wrong[rows], kind="stable")]
    if len(order) < 3 * third:
        parts = np.array_split(order, 3)
    else:
        middle = (len(order) - third) // 2
        parts = [order[:third], order[middle : middle + third], order[-third:]]
    parts[2] = parts[2][::-1]
    return {title: part.tolist() for title, part in zip(titles, parts, strict=True)}


def tags(scores: Scores, truth: Labels, names: Sequence[str], thresholds: Thresholds) -> Said:
    """Compare what is predicted in one image with the ground truth.

    Args:
        scores: float32 [C], in [0, 1].
        truth: int8 [C]: 1, 0, or -1 unknown.
        names: of the classes.
        thresholds: float64 [C], scores from which the classes are predicted.

    Returns:
        Tags by kind, the highest scores first; where nothing is predicted, the likeliest class too.
    """
    predicted = scores >= thresholds
    kinds: list[tuple[Kind, npt.NDArray[np.bool_]]] = [
        ("right", predicted & (truth == 1)),
        ("wrong", predicted & (truth == 0)),
        ("predicted", predicted & (truth == -1)),
        ("missed", ~predicted & (truth == 1)),
    ]
    shown, more = [], 0
    for kind, chosen in kinds:
        columns = np.flatnonzero(chosen)
        columns = columns[np.argsort(-scores[columns], kind="stable")]
        shown += [Tag(int(c), names[c], kind, float(scores[c])) for c in columns[:MAX_TAGS]]
        more += max(0, len(columns) - MAX_TAGS)
    likeliest = int(np.argmax(scores))
    if not predicted.any() and all(tag.column != likeliest for tag in shown):
        shown.append(Tag(likeliest, names[likeliest], "below", float(scores[likeliest])))
    return Said(shown, more)


def thumbnail(image: Image.Image) -> tuple[bytes, int, int]:
    """Make a small JPEG, within 256 x 256 pixels with its aspect kept; returns it with width and height."""
    scale = min(1.0, _SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return stream.getvalue(), *size


def heatmap(cam: npt.NDArray[np.float32], score: float) -> bytes:
    """Draw an activation map as a small transparent PNG that is laid over the image: the hotter, the denser.

    Args:
        cam: float32 [h, w], finite, of any range: its coldest place is clear; a constant map is clear throughout.
        score: of the class, in [0, 1]: the higher, the hotter and denser is the map's hottest place.

    Returns:
        PNG of 24 x 24 pixels, 48 colours; about a kilobyte.
    """
    levels = np.asarray(scaled(cam).resize((_HEAT_SIDE, _HEAT_SIDE), Image.Resampling.BICUBIC)).clip(0.0, 1.0)
    picture = Image.fromarray((levels * (_HEAT_LEVELS - 1)).round().astype(np.uint8), "P")
    shares = np.linspace(0, 1, _HEAT_LEVELS)
    # By the root of the score: thresholds are often far below 0.5, and what is predicted there should be seen.
    picture.putpalette(coloured(shares * score**0.5).round().astype(np.uint8).tobytes())
    opacity = (shares * (_FAINTEST + score * (_DENSEST - _FAINTEST))).round().astype(np.uint8)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True, transparency=opacity.tobytes())
    return stream.getvalue()
