"""Scenes with captions that name several objects, their masks, and which words are true.

A caption names the objects of its scene, in some captions one fewer; a quarter of them with their colours. Like those
of photographs it has words that no picture shows (a day, a story), and in a third of them an object that is not there.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipdistill.datasets.scenes.making import in_chunks, whole_folder
from clipdistill.datasets.scenes.objects import CLASSES
from clipdistill.datasets.scenes.scene import Scene, draw_scene
from clipdistill.datasets.scenes.voc_layout import palette_image, write_lines

if TYPE_CHECKING:
    from pathlib import Path

    from clipdistill.datasets.scenes.canvas import Mask
    from clipdistill.params import ScenesParams, TaggedScenesParams

_STREAMS = {"train": 3, "val": 4}

_BEGINNINGS = ("", "", "a photo of ", "a picture of ", "my drawing of ", "there is ", "here we see ")
_LINKS = (" and ", ", ", " with ", " beside ", " near ", " next to ")
_ABSENT = (", without {}", ", dreaming of {}", ", waiting for {}", " and a story about {}")
_ENDINGS = (" on a sunny day", " in the evening", " from my last holiday", ", what a wonderful world", " at home")

_COLOURED = 0.25
_OMITTED = 0.2
_MENTIONED = 1 / 3
_ENDED = 0.5

# Tokens that the tiny CLIP reads beside the two at the ends, and those of a link, an article and a class.
_MOST_WORDS = 14
_LONGEST_THING = 4

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("mask", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption and what of it is true.

    Attributes:
        text: the caption.
        tags: words of it that the scene shows: classes, and colours of objects that are named with theirs.
        names: classes of the scene that it names.
    """

    text: str
    tags: list[str]
    names: list[str]


def generate_tagged(scenes: ScenesParams, params: TaggedScenesParams, out: Path, workers: int | None = None) -> None:
    """Draw captioned scenes and write them.

    Writes what VOC has for segmentation: `JPEGImages/*.jpg`, `SegmentationClass/*.png` (palette images: 0 no object,
    c + 1 an object of class c), `ImageSets/Segmentation/train.txt` and `val.txt`, `classes.txt`; and for captions
    `CaptionMask/*.png` (255 where an object is that the caption names), `train.parquet` and `val.parquet` (id, path,
    caption, tags: the true words, mask).

    Scene i of a split depends on the seed, the split, the side, the most objects and i alone; they are other scenes
    than those of `generate_scenes`.

    Args:
        scenes: seed, side and the most objects of a scene.
        params: numbers of scenes.
        out: folder to make; one that is there is replaced. It appears when it is complete.
        workers: processes that draw; None: one a processor.

    Raises:
        ArtifactError: the folder cannot be written, or a worker was killed.
    """
    with whole_folder(out) as folder:
        for name in ("JPEGImages", "SegmentationClass", "CaptionMask", "ImageSets/Segmentation"):
            (folder / name).mkdir(parents=True)
        first = 0
        for split, count in (("train", params.train_images), ("val", params.val_images)):
            task = functools.partial(_write_rows, scenes, folder, split, first)
            rows = [row for _, chunk in in_chunks(task, count, workers) for row in chunk]
            pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), folder / f"{split}.parquet")
            write_lines(folder / "ImageSets" / "Segmentation" / f"{split}.txt", [row["id"] for row in rows])
            first += count
        write_lines(folder / "classes.txt", list(CLASSES))


def tagged_scene(params: ScenesParams, split: str, row: int) -> tuple[Scene, Caption]:
    """Draw scene `row` (from 0) of a split, `train` or `val`, and write its caption."""
    rng = np.random.default_rng([params.seed, _STREAMS[split], row])
    scene = draw_scene(rng, params.image_size, params.max_objects)
    return scene, compose_caption(rng, [(item.name, item.colour) for item in scene.objects])


def compose_caption(rng: np.random.Generator, objects: list[tuple[str, str]]) -> Caption:
    """A caption of some of the objects, each a class and a colour; a class is named once.

    What would make it longer than the tiny CLIP reads is left out: it would cut off the end without a word.
    """
    unique = dict(reversed(objects))
    shown = [(name, unique[name]) for name in rng.permutation(sorted(unique)).tolist()]
    named = shown[:-1] if len(shown) > 1 and rng.random() < _OMITTED else shown
    tags, text = [], ""
    left = len(named)
    for name, colour in named:
        left -= 1
        coloured = rng.random() < _COLOURED
        link = _choice(rng, _LINKS) if text else ""
        thing = link + _with_article(f"{colour} {name}")
        if not coloured or _length(text + thing) + left * _LONGEST_THING > _MOST_WORDS:
            coloured, thing = False, link + _with_article(name)
        tags += [colour, name] if coloured else [name]
        text += thing
    absent = [name for name in CLASSES if name not in unique]
    mentioned = _choice(rng, _ABSENT).format(_with_article(_choice(rng, absent)))
    if rng.random() < _MENTIONED and _length(text + mentioned) <= _MOST_WORDS:
        text += mentioned
    ending, beginning = _choice(rng, _ENDINGS), _choice(rng, _BEGINNINGS)
    if rng.random() < _ENDED and _length(text + ending) <= _MOST_WORDS:
        text += ending
    text = beginning + text if _length(beginning + text) <= _MOST_WORDS else text
    return Caption(text, list(dict.fromkeys(tags)), [name for name, _ in named])


def _length(text: str) -> int:
    """Words and commas, each a token."""
    return len(re.findall(r"\w+|,", text))


def _with_article(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _choice(rng: np.random.Generator, texts: tuple[str, ...] | list[str]) -> str:
    return texts[int(rng.integers(len(texts)))]


def _write_rows(params: ScenesParams, folder: Path, split: str, first: int, rows: range) -> list[dict[str, Any]]:
    written = []
    for row in rows:
        stem = f"tagged_{first + row + 1:06d}"
        scene, caption = tagged_scene(params, split, row)
        path, mask = f"JPEGImages/{stem}.jpg", f"CaptionMask/{stem}.png"
        scene.image.save(folder / path, quality=90, subsampling="4:4:4")
        palette_image(scene.mask).save(folder / "SegmentationClass" / f"{stem}.png")
        _named(scene.mask, caption.names).save(folder / mask)
        written.append({"id": stem, "path": path, "caption": caption.text, "tags": caption.tags, "mask": mask})
    return written


def _named(mask: Mask, names: list[str]) -> Image.Image:
    indices = [CLASSES.index(name) + 1 for name in names]
    return Image.fromarray(np.isin(mask, indices).astype(np.uint8) * 255, "L")
