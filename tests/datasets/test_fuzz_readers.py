"""Readers of raw data against damaged files: a data set whose images lie below the root, or an error for people.

The same for the tables that later stages read. Cases are the same in every run; CLIPDISTILL_FUZZ_SECONDS=600 draws new
ones for that long.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mask_layouts import write_ade, write_masked_coco, write_masked_folder, write_masked_voc, write_streets
from raw_layouts import write_coco, write_jpeg, write_nuswide, write_nuswide_tags, write_text, write_voc

import damage
from clipdistill.datasets import table
from clipdistill.datasets.formatted import write_formatted
from clipdistill.datasets.masks.masked import IGNORE, MaskedImages
from clipdistill.datasets.masks.readers import read_masked
from clipdistill.datasets.open_vocabulary import labels_of
from clipdistill.datasets.prompt_names import NUSWIDE_CLASSES, VOC_CLASSES
from clipdistill.datasets.raw import RawDataset
from clipdistill.datasets.readers import read_raw
from clipdistill.datasets.table import ClassName, ImageTable
from clipdistill.params import DatasetParams, SegmentParams

IMAGES = 3


def raw(root: Path, reader: str, **settings: object) -> RawDataset:
    return read_raw(DatasetParams.model_validate({"reader": reader, "root": str(root)} | settings))


def write_voc_release(root: Path) -> None:
    splits = {"train": {"a": [("cat", False)], "b": [("dog", True)]}, "val": {"c": [("cat", False), ("dog", False)]}}
    write_voc(root, splits, ["cat", "dog"])
    write_text(root / "classes.txt", "cat\ndog\thot dog\n")


def write_coco_release(root: Path) -> None:
    for split, first in (("train", 1), ("val", 7)):
        write_coco(root, split, {first: [3], first + 1: [5, 3]}, {3: "cat", 5: "dog"})


def write_nuswide_release(root: Path) -> None:
    write_nuswide(root, {"a/1.jpg": [0, 1], "a/2.jpg": [1, 0]}, {"b/3.jpg": [1, 1]}, ["cat", "dog"])


def write_coloured_release(root: Path) -> None:
    write_voc_release(root)
    write_text(root / "attributes.txt", "red\nblue\n")
    write_text(root / "unseen.txt", "red cat\nblue dog\n")
    xml = (
        "<annotation><object><name>cat</name><color>red</color></object><object><name>dog</name></object></annotation>"
    )
    write_text(root / "Annotations" / "a.xml", xml)


def write_tagged_nuswide_release(root: Path) -> None:
    concept = [0] * len(NUSWIDE_CLASSES)
    write_nuswide(root, {"a/1.jpg": concept, "a/2.jpg": concept}, {"b/3.jpg": concept}, NUSWIDE_CLASSES)
    tags = [f"tag{number}" for number in range(925)]
    write_nuswide_tags(root, tags, {"a/1.jpg": tags[:3], "b/3.jpg": tags[-1:]})


def write_formatted_release(root: Path) -> None:
    write_text(root / "classes.txt", "# two\ncat\ndog\n")
    for number, split in enumerate(("train", "val")):
        paths = [f"{split}/{row}.jpg" for row in range(IMAGES)]
        for path in paths:
            write_jpeg(root / path, number)
        write_formatted(root, split, paths, np.eye(IMAGES, 2, dtype=np.int8))


def write_own_folder(root: Path) -> None:
    for path in ("train/1.jpg", "train/2.jpg", "val/3.jpg"):
        write_jpeg(root / path)
    write_text(root / "classes.txt", "cat\ndog\thot dog\n")
    write_text(root / "labels.csv", "path,labels\ntrain/1.jpg,cat;dog\ntrain/2.jpg,\nval/3.jpg,dog\n")


def write_table(root: Path) -> None:
    names, sides = [f"{row}.jpg" for row in range(IMAGES)], np.full(IMAGES, 6, np.int32)
    made = ImageTable(Path("images"), names, names, sides, sides, sides.astype(np.int64), ["0" * 32] * IMAGES, 100)
    made.write(root / "images.parquet")
    table.write_classes(root / "classes.yaml", [ClassName("cat", "cat"), ClassName("dog", "hot dog")])


READERS: dict[str, tuple[Callable[[Path], None], dict[str, object], list[str]]] = {
    "voc": (
        write_voc_release,
        {},
        ["classes.txt", "ImageSets/Main/train.txt", "ImageSets/Main/val.txt", "Annotations/a.xml", "Annotations/c.xml"],
    ),
    "voc main": (
        write_voc_release,
        {"annotations": "main"},
        ["classes.txt", "ImageSets/Main/val.txt", "ImageSets/Main/cat_train.txt"],
    ),
    "coco": (write_coco_release, {}, ["annotations/instances_train.json", "annotations/instances_val.json"]),
    "nuswide": (
        write_nuswide_release,
        {"train": "Train", "val": "Test"},
        [
            "ConceptsList/Concepts81.txt",
            "ImageList/Imagelist.txt",
            "ImageList/TrainImagelist.txt",
            "AllLabels/Labels_cat.txt",
        ],
    ),
    "voc coloured": (
        write_coloured_release,
        {"open_vocabulary": "attributes"},
        ["attributes.txt", "unseen.txt", "classes.txt", "Annotations/a.xml"],
    ),
    "nuswide tagged": (
        write_tagged_nuswide_release,
        {"train": "Train", "val": "Test", "open_vocabulary": "nuswide-925-81"},
        ["NUS_WID_Tags/TagList1k.txt", "NUS_WID_Tags/AllTags1k.txt", "ConceptsList/Concepts81.txt"],
    ),
    "formatted": (
        write_formatted_release,
        {"images": "."},
        ["classes.txt", "formatted_train_images.npy", "formatted_val_labels.npy"],
    ),
    "folder": (write_own_folder, {}, ["classes.txt", "labels.csv"]),
}


def check_dataset(root: Path, found: RawDataset) -> None:
    """What every later stage may rely on."""
    assert len({item.name for item in found.classes}) == len(found.classes) > 0
    assert len({item.name for item in found.open_classes}) == len(found.open_classes) > 0
    assert found.open_classes[0].seen
    for part in found.splits.values():
        assert len(set(part.ids)) == len(part.ids) == len(part.paths)
        assert part.labels.shape == (len(part.ids), len(found.classes))
        assert set(np.unique(part.labels)) <= {-1, 0, 1}
        open_labels = labels_of(part, found.classes, found.open_classes)
        assert open_labels.shape == (len(part.ids), len(found.open_classes))
        assert set(np.unique(open_labels)) <= {-1, 0, 1}
        for path in part.paths:
            assert (found.image_root / path).resolve().is_relative_to(root.resolve())
            assert (found.image_root / path).is_file()


@pytest.mark.parametrize("name", READERS)
def test_damaged_raw_data_is_read_or_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write, settings, files = READERS[name]
    write(root)
    write_jpeg(tmp_path / "secret.jpg")
    settings = settings | ({"images": str(root)} if "images" in settings else {})

    def read() -> None:
        check_dataset(root, raw(root, name.split(maxsplit=1)[0], **settings))

    damage.fuzz(root, files, read, examples=120)


def write_named_voc(root: Path) -> None:
    write_masked_voc(root)
    write_text(root / "classes.txt", "".join(f"{name}\n" for name in VOC_CLASSES))


STREET = "val/ulm/ulm_000000_000019"

MASKS: dict[str, tuple[Callable[[Path], None], str, list[str]]] = {
    "voc": (
        write_named_voc,
        "val",
        [
            "classes.txt",
            "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
            "VOCdevkit/VOC2012/SegmentationClass/a.png",
            "VOCdevkit/VOC2012/JPEGImages/b.jpg",
        ],
    ),
    "coco": (write_masked_coco, "val", ["annotations/instances_val.json"]),
    "cityscapes": (
        write_streets,
        "val",
        [f"gtFine/{STREET}_gtFine_labelIds.png", f"leftImg8bit/{STREET}_leftImg8bit.png"],
    ),
    "ade": (write_ade, "validation", ["objectInfo150.txt", "annotations/validation/ADE_val_1.png"]),
    "folder": (write_masked_folder, "val", ["classes.txt", "val/masks/b.png"]),
}


def check_masks(root: Path, found: MaskedImages) -> None:
    """What segmentation may rely on."""
    assert len(set(found.ids)) == len(found.ids) == len(found.paths) == len(found) > 0
    assert len(set(found.labels)) == len(found.labels) >= 2
    assert len(found.prompts) == len(found.classes)
    for row, path in enumerate(found.paths):
        assert path.resolve().is_relative_to(root.resolve())
        image, mask = found.open(row)
        assert (image.mode, image.size, mask.dtype) == ("RGB", mask.shape[::-1], np.uint8)
        assert set(np.unique(mask)) <= {*range(len(found.labels)), IGNORE}


@pytest.mark.parametrize("name", MASKS)
def test_damaged_masks_are_read_or_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write, split, files = MASKS[name]
    write(root)
    write_jpeg(tmp_path / "secret.jpg")
    params = SegmentParams(reader=name, root=str(root), val=split)
    damage.fuzz(root, files, lambda: check_masks(root, read_masked(params, "val", 10**6)), examples=120)


def read_table(path: Path) -> None:
    found = ImageTable.load(path)
    columns: list[Any] = [found.ids, found.paths, found.widths, found.heights, found.sizes, found.hashes]
    assert {len(column) for column in columns} == {len(found)}
    assert all(isinstance(text, str) for text in [*found.ids, *found.paths, *found.hashes])
    assert isinstance(found.max_pixels, int)
    assert len(found.fingerprint) == 64


def read_classes(path: Path) -> None:
    found = table.read_classes(path)
    assert found
    assert all(isinstance(item.name, str) and isinstance(item.prompt, str) for item in found)
    assert len({item.name for item in found}) == len(found)


def test_a_damaged_table_is_read_or_refused(tmp_path: Path) -> None:
    write_table(tmp_path)
    files = ["images.parquet", "images.yaml"]
    damage.fuzz(tmp_path, files, lambda: read_table(tmp_path / "images.parquet"), examples=200)


def test_a_damaged_class_list_is_read_or_refused(tmp_path: Path) -> None:
    write_table(tmp_path)
    damage.fuzz(tmp_path, ["classes.yaml"], lambda: read_classes(tmp_path / "classes.yaml"), examples=200)
