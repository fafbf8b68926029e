"""The scenes as files in the layout of PASCAL VOC."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from clipdistill.datasets.scenes.making import in_chunks, whole_folder
from clipdistill.datasets.scenes.objects import CLASSES, COLOURS
from clipdistill.datasets.scenes.scene import Scene, draw_scene
from clipdistill.evaluation.voc_palette import voc_palette

if TYPE_CHECKING:
    from pathlib import Path

    from clipdistill.datasets.scenes.canvas import Mask
    from clipdistill.params import ScenesParams

_STREAMS = {"train": 0, "val": 1}


def generate_scenes(params: ScenesParams, out: Path, workers: int | None = None) -> None:
    """Draw the scenes and write them as VOC does.

    Writes `JPEGImages/*.jpg`, `Annotations/*.xml` (each object with its `color` besides VOC's own fields),
    `ImageSets/Main/train.txt` and `val.txt`, `SegmentationClass/*.png` of the val split (palette images: 0 no
    object, c + 1 an object of class c), `classes.txt` (a name a line, in the order of the columns), and for an open
    vocabulary of colours and classes `attributes.txt` (a colour a line) and `unseen.txt` (a combination a line).

    Scene i of a split depends on the seed, the split, the side, the most objects and i alone. The names of files
    count on from train to val.

    Args:
        params: seed, numbers of scenes, their side and the most objects in one.
        out: folder to make; one that is there is replaced. It appears when it is complete.
        workers: processes that draw; None: one a processor.

    Raises:
        ArtifactError: the folder cannot be written, or a worker was killed.
    """
    with whole_folder(out) as folder:
        for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        total = params.train_images + params.val_images
        stems = [
            stem
            for _, chunk in in_chunks(functools.partial(_write_rows, params, folder), total, workers)
            for stem in chunk
        ]
        write_lines(folder / "ImageSets" / "Main" / "train.txt", stems[: params.train_images])
        write_lines(folder / "ImageSets" / "Main" / "val.txt", stems[params.train_images :])
        write_lines(folder / "classes.txt", list(CLASSES))
        write_lines(folder / "attributes.txt", list(COLOURS))
        write_lines(folder / "unseen.txt", unseen_combinations())


def unseen_combinations() -> list[str]:
    """Combinations of a colour and a class that training is not to see: two of each class, three of each colour.

    So both words of each are seen in other combinations, equally often, and only their combination is not.
    """
    # A Latin pattern: the quarter of all whose indices add up to a multiple of four.
    return [
        f"{colour} {name}"
        for column, name in enumerate(CLASSES)
        for index, colour in enumerate(COLOURS)
        if (index + column) % 4 == 0
    ]


def scene_of(params: ScenesParams, split: str, row: int) -> Scene:
    """Draw scene `row` (from 0) of a split, `train` or `val`."""
    rng = np.random.default_rng([params.seed, _STREAMS[split], row])
    return draw_scene(rng, params.image_size, params.max_objects)


def _write_rows(params: ScenesParams, folder: Path, rows: range) -> list[str]:
    stems = [f"scene_{row + 1:06d}" for row in rows]
    for stem, row in zip(stems, rows, strict=True):
        held_out = row >= params.train_images
        scene = scene_of(params, "val", row - params.train_images) if held_out else scene_of(params, "train", row)
        scene.image.save(folder / "JPEGImages" / f"{stem}.jpg", quality=90, subsampling="4:4:4")
        (folder / "Annotations" / f"{stem}.xml").write_bytes(_annotation(scene, stem, segmented=held_out))
        if held_out:
            palette_image(scene.mask).save(folder / "SegmentationClass" / f"{stem}.png")
    return stems


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file of lines."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _annotation(scene: Scene, stem: str, *, segmented: bool) -> bytes:
    root = ElementTree.Element("annotation")
    _fill(root, folder="scenes", filename=f"{stem}.jpg")
    _fill(ElementTree.SubElement(root, "size"), width=scene.image.width, height=scene.image.height, depth=3)
    _fill(root, segmented=int(segmented))
    for item in scene.objects:
        node = ElementTree.SubElement(root, "object")
        _fill(node, name=item.name, color=item.colour, truncated=0, difficult=0)
        # VOC counts pixels from 1, and the last one belongs to the box.
        limits = ElementTree.SubElement(node, "bndbox")
        _fill(limits, xmin=item.box.left + 1, ymin=item.box.top + 1, xmax=item.box.right, ymax=item.box.bottom)
    ElementTree.indent(root)
    return ElementTree.tostring(root) + b"\n"


def _fill(node: ElementTree.Element, **fields: str | int) -> None:
    for name, value in fields.items():
        ElementTree.SubElement(node, name).text = str(value)


def palette_image(mask: Mask) -> Image.Image:
    """A mask uint8 [H, W] as VOC stores it: class indices, and a palette to look at them."""
    image = Image.fromarray(mask, "P")
    image.putpalette(voc_palette()[: 3 * (len(CLASSES) + 1)])
    return image
