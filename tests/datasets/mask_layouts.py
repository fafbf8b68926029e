"""Miniature data sets with segmentation masks, in the layouts that the readers know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from raw_layouts import write_jpeg, write_text

from clipdistill.datasets.masks.masked import IGNORE


def write_mask(path: Path, values: Any, mode: str = "P") -> Path:  # noqa: ANN401
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image = image.convert("P")
        # Colours that are not the indices: a reader must not look at them.
        image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(path)
    return path


def grid(*values: int, size: tuple[int, int] = (6, 4)) -> np.ndarray:
    """A mask of the size of `write_jpeg`'s images that begins with the values."""
    mask = np.full(size[::-1], values[-1], np.uint8)
    mask.flat[: len(values)] = values
    return mask


def write_masked_voc(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    for number, name in enumerate(("b", "a")):
        write_jpeg(base / "JPEGImages" / f"{name}.jpg", number)
        write_mask(base / "SegmentationClass" / f"{name}.png", grid(number, 20, IGNORE, 7))
    write_text(base / "ImageSets" / "Segmentation" / "val.txt", "b\na\n")


def coco_content(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    square = [[0, 0, 4, 0, 4, 4, 0, 4]]
    annotations = [
        {"id": 1, "image_id": 2, "category_id": 90, "segmentation": square, "iscrowd": 0, "area": 16.0},
        {"id": 2, "image_id": 2, "category_id": 1, "segmentation": [[1, 1, 3, 1, 3, 2, 1, 2]], "bbox": [0, 0, 1, 1]},
        {"id": 3, "image_id": 2, "category_id": 1, "segmentation": {"counts": [20, 4], "size": [4, 6]}, "iscrowd": 1},
        {"id": 4, "image_id": 77, "category_id": 1, "segmentation": square},
    ]
    content = {
        "info": {"id": "no image"},
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": 6, "height": 4} for number in (2, 1)],
        "annotations": annotations,
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
    }
    return content | changes


def write_masked_coco(root: Path) -> None:
    write_jpeg(root / "val" / "1.jpg")
    write_jpeg(root / "val" / "2.jpg")
    write_coco(root, coco_content())


def write_coco(root: Path, content: object) -> None:
    write_text(root / "annotations" / "instances_val.json", json.dumps(content))


def write_streets(root: Path) -> None:
    for city, ids in (("ulm", grid(7, 33, 24, 0)), ("bonn", grid(255, 11))):
        write_jpeg(root / "leftImg8bit" / "val" / city / f"{city}_000000_000019_leftImg8bit.png")
        write_mask(root / "gtFine" / "val" / city / f"{city}_000000_000019_gtFine_labelIds.png", ids, "L")


def write_ade(root: Path) -> None:
    lines = [f"{number}\t0.1\t9\t9\tthing {number}, other name" for number in range(1, 151)]
    write_text(root / "objectInfo150.txt", "\r\n".join(["Idx\tRatio\tTrain\tVal\tName ", *lines, ""]))
    write_jpeg(root / "images" / "validation" / "ADE_val_1.jpg")
    write_mask(root / "annotations" / "validation" / "ADE_val_1.png", grid(0, 1, 150, 2), "L")


def write_masked_folder(root: Path) -> None:
    write_text(root / "classes.txt", "background\ncat\ntv\ttv set\n")
    for number, name in enumerate(("b.JPG", "a.png")):
        write_jpeg(root / "val" / "images" / name, number)
        write_mask(root / "val" / "masks" / f"{Path(name).stem}.png", grid(number, 2, IGNORE, 0), "L")
    write_text(root / "val" / "images" / "notes.txt", "no image")
    write_text(root / "val" / "images" / ".hidden.jpg", "no image")
