"""Miniature data sets in the layouts that the readers know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

REAL_VOC = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "voc2012_subset"

Objects = Sequence[tuple[str, bool]]


def write_jpeg(path: Path, seed: int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    """An image whose bytes depend on the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (37 * seed % 256, 91 * seed % 256, 11 * seed % 256)).save(path, "JPEG")
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def voc_xml(objects: Objects) -> str:
    parts = [
        f"<object><name>{name}</name><difficult>{int(difficult)}</difficult></object>" for name, difficult in objects
    ]
    return f"<annotation>{''.join(parts)}</annotation>"


def voc_value(objects: Objects, name: str) -> int:
    """The development kit's rule, for one image and class."""
    flags = [difficult for item, difficult in objects if item == name]
    if not flags:
        return -1
    return 0 if all(flags) else 1


def write_voc(
    base: Path, splits: Mapping[str, Mapping[str, Objects]], classes: Sequence[str], images: bool = True
) -> Path:
    """Write a release (JPEGImages, Annotations, ImageSets/Main) into `base`."""
    (base / "JPEGImages").mkdir(parents=True, exist_ok=True)
    main = base / "ImageSets" / "Main"
    for split, content in splits.items():
        write_text(main / f"{split}.txt", "".join(f"{image_id}\n" for image_id in content))
        for name in classes:
            lines = [f"{image_id} {voc_value(objects, name):2d}\n" for image_id, objects in content.items()]
            write_text(main / f"{name}_{split}.txt", "".join(lines))
        for number, (image_id, objects) in enumerate(content.items()):
            write_text(base / "Annotations" / f"{image_id}.xml", voc_xml(objects))
            if images:
                write_jpeg(base / "JPEGImages" / f"{image_id}.jpg", number + 100 * len(split))
    return base


def write_coco(
    root: Path,
    split: str,
    images: Mapping[int, Sequence[int]],
    categories: Mapping[int, str],
    files: Mapping[int, str] | None = None,
) -> Path:
    """Write one split: category ids of the annotations by image id."""
    names = {image_id: f"{split}_{image_id:012d}.jpg" for image_id in images} | dict(files or {})
    content = {
        "info": {"id": "not an image"},
        "images": [{"id": image_id, "file_name": names[image_id], "width": 6} for image_id in images],
        "annotations": [
            {"id": 10 * image_id, "image_id": image_id, "category_id": category, "segmentation": [[1.5]]}
            for image_id, present in images.items()
            for category in present
        ],
        "categories": [{"id": number, "name": name} for number, name in reversed(categories.items())],
    }
    for image_id, name in names.items():
        if "/" not in name:
            write_jpeg(root / split / name, image_id)
    return write_text(root / "annotations" / f"instances_{split}.json", json.dumps(content))


def write_nuswide(
    root: Path, train: Mapping[str, Sequence[int]], test: Mapping[str, Sequence[int]], names: Sequence[str]
) -> Path:
    """Write the publisher's files: labels by path, in the order of `names`."""
    every = dict(sorted((dict(train) | dict(test)).items()))
    lists = {"": every, "Train": train, "Test": test}
    for prefix, content in lists.items():
        lines = [path.replace("/", "\\") + "\r\n" for path in content]
        write_text(root / "ImageList" / f"{prefix}Imagelist.txt", "".join(lines))
    write_text(root / "ConceptsList" / "Concepts81.txt", "".join(f"{name}\n" for name in names))
    for column, name in enumerate(names):
        lines = [f"{row[column]}\n" for row in every.values()]
        write_text(root / "AllLabels" / f"Labels_{name}.txt", "".join(lines))
    for number, path in enumerate(every):
        write_jpeg(root / "Flickr" / path, number)
    return root


def write_nuswide_tags(root: Path, tags: Sequence[str], given: Mapping[str, Sequence[str]]) -> Path:
    """Write the tags of the images that `write_nuswide` has written: names by path, in the publisher's form."""
    paths = (root / "ImageList" / "Imagelist.txt").read_text().replace("\\", "/").split()
    folder = root / "NUS_WID_Tags"
    write_text(folder / "TagList1k.txt", "".join(f"{tag}\n" for tag in tags))
    rows = [[int(tag in given.get(path, ())) for tag in tags] for path in paths]
    # A tab after the last value too: each line ends with two characters that are none.
    write_text(folder / "AllTags1k.txt", "".join("".join(f"{value}\t" for value in row) + "\n" for row in rows))
    return folder
