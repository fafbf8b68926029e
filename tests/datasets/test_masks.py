"""Readers of segmentation masks: the five layouts, and what each refuses."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mask_layouts import (
    coco_content,
    grid,
    write_ade,
    write_coco,
    write_mask,
    write_masked_coco,
    write_masked_folder,
    write_masked_voc,
    write_streets,
)
from PIL import Image
from raw_layouts import write_jpeg, write_text

from clipdistill.datasets.masks import cityscapes
from clipdistill.datasets.masks.masked import IGNORE, MaskedImages
from clipdistill.datasets.masks.readers import read_masked
from clipdistill.datasets.prompt_names import COCO_CLASSES, VOC_CLASSES
from clipdistill.datasets.scenes.voc_layout import generate_scenes
from clipdistill.errors import DataError
from clipdistill.params import ScenesParams, SegmentParams

MOST = 10**6


def read(reader: str, root: Path, split: str = "val", most: int = MOST) -> MaskedImages:
    return read_masked(SegmentParams(reader=reader, root=str(root), val=split), "val", most)


# VOC


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    write_masked_voc(tmp_path)
    return tmp_path


def test_voc(voc: Path) -> None:
    data = read("voc", voc)
    assert (data.classes, data.background, data.ids) == (list(VOC_CLASSES), True, ["b", "a"])
    assert data.prompts[data.classes.index("pottedplant")] == "potted plant"
    assert data.labels[:2] == ["background", "aeroplane"]
    image, mask = data.open(1)
    assert (image.mode, image.size, mask.dtype) == ("RGB", (6, 4), np.uint8)
    assert np.array_equal(mask, grid(1, 20, IGNORE, 7))


def test_voc_without_lists_of_its_own_takes_the_images_of_main_that_have_a_mask(voc: Path) -> None:
    base = voc / "VOCdevkit" / "VOC2012"
    (base / "ImageSets" / "Segmentation").rename(base / "ImageSets" / "Main")
    write_text(base / "ImageSets" / "Main" / "val.txt", "c\na\n")
    write_text(base / "classes.txt", "\n".join(f"c{number}" for number in range(20)))
    write_text(voc / "classes.txt", "not\nthese\n")
    data = read("voc", voc)
    assert (data.ids, data.classes[19]) == (["a"], "c19")
    write_text(base / "ImageSets" / "Main" / "val.txt", "c\n")
    with pytest.raises(DataError, match="names no image that has a mask"):
        read("voc", voc)


def test_the_generated_data_set_is_read(tmp_path: Path) -> None:
    drawn = ScenesParams(train_images=1, val_images=2, image_size=48)
    generate_scenes(drawn, tmp_path / "scenes", workers=1)
    data = read("voc", tmp_path / "scenes")
    assert len(data) == 2
    assert len(data.classes) == 12
    image, mask = data.open(0)
    assert image.size == mask.shape[::-1] == (48, 48)
    assert 0 < (mask > 0).mean() < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\na\n", "names 'a' twice"),
        ("a 1\n", "'a 1' is not one image id"),
        ("../a\n", r"is not one below"),
        ("c\n", r"'c\.jpg' below .*: .*c\.jpg cannot be found .*; get VOCtrainval"),
        ("", "names no image that has a mask"),
    ],
)
def test_voc_lists_that_cannot_be(voc: Path, text: str, message: str) -> None:
    write_text(voc / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt", text)
    with pytest.raises(DataError, match=message):
        read("voc", voc)


def test_voc_that_is_not_there(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no VOC with masks here"):
        read("voc", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"test\.txt is missing: ttd\.segment must name a list there"):
        read("voc", voc, "test")


# The files of masks


def test_images_and_masks_that_cannot_be(voc: Path) -> None:
    base = voc / "VOCdevkit" / "VOC2012"
    masks, photos = base / "SegmentationClass", base / "JPEGImages"
    data = read("voc", voc)
    write_mask(masks / "b.png", grid(21, 0))
    with pytest.raises(DataError, match=r"b\.png has pixels of value 21, .* known here are 0 to 20, 255"):
        data.open(0)
    Image.new("RGB", (6, 4)).save(masks / "b.png")
    with pytest.raises(DataError, match=r"b\.png holds colours \(Pillow's mode RGB\) .* save it as a palette or gray"):
        data.open(0)
    write_mask(masks / "b.png", np.zeros((5, 6)))
    with pytest.raises(DataError, match=r"b\.png: the mask has 6 x 5 pixels, its image 6 x 4 .*; make it anew"):
        data.open(0)
    (masks / "b.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"b\.png"):
        data.open(0)
    Image.new("L", (6, 4)).save(masks / "b.png", "JPEG")
    with pytest.raises(DataError, match=r"b\.png is not a PNG"):
        data.open(0)
    whole = write_mask(masks / "b.png", np.arange(240_000).reshape(400, 600) % 251).read_bytes()
    (masks / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"b\.png: the mask cannot be decoded .*; get it again"):
        data.open(0)
    with pytest.raises(DataError, match=r"b\.png: 600 x 400 pixels are more than dataset\.max_pixels = 100"):
        read("voc", voc, most=100).open(0)
    (masks / "b.png").unlink()
    with pytest.raises(DataError, match=r"b\.png: cannot be read"):
        data.open(0)
    (photos / "b.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.jpg: is empty"):
        data.open(0)


def test_an_image_that_its_exif_turns_needs_a_mask_that_is_turned(voc: Path) -> None:
    path = voc / "VOCdevkit" / "VOC2012" / "JPEGImages" / "b.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(path, exif=exif)
    with pytest.raises(DataError, match=r"has 6 x 4 pixels, its image 4 x 6 .* EXIF orientation turns it"):
        read("voc", voc).open(0)
    write_mask(voc / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "b.png", grid(3, 0, size=(4, 6)))
    image, mask = read("voc", voc).open(0)
    assert image.size == (4, 6)
    assert mask[0, 0] == 3


def test_gray_masks_of_any_depth_hold_their_indices(voc: Path) -> None:
    """Pillow alone would stretch 2 and 4 bits to the whole range."""
    path = voc / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "b.png"
    data = read("voc", voc)
    for bits in (1, 2, 4, 8, 16):
        wanted = np.arange(24).reshape(4, 6) % min(2**bits, 21)
        path.write_bytes(gray_png(wanted, bits))
        assert np.array_equal(data.open(0)[1], wanted), bits
    write_mask(path, grid(1, 0), "L")
    assert data.open(0)[1][0, 0] == 1
    path.write_bytes(gray_png(np.full((4, 6), 300), 16))
    with pytest.raises(DataError, match="pixels of value 300"):
        data.open(0)


def gray_png(values: np.ndarray, bits: int) -> bytes:
    """Written out, since Pillow writes 8 bits and more alone."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = ["".join(f"{value:0{bits}b}" for value in row) for row in values.tolist()]
    packed = [int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8)) for row in rows]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in packed))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_link_out_of_the_root_is_not_followed(voc: Path, tmp_path: Path) -> None:
    secret = write_jpeg(tmp_path.parent / f"{tmp_path.name}-secret.jpg")
    photo = voc / "VOCdevkit" / "VOC2012" / "JPEGImages" / "b.jpg"
    photo.unlink()
    photo.symlink_to(secret)
    with pytest.raises(DataError, match="a symbolic link leads out"):
        read("voc", voc)


# COCO


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write_masked_coco(tmp_path)
    return tmp_path


def test_coco(coco: Path) -> None:
    data = read("coco", coco)
    assert (data.classes, data.background) == (["person", "toothbrush"], True)
    assert data.ids == ["000000000001", "000000000002"]
    assert not data.open(0)[1].any()
    assert data.open(1)[1].tolist() == [
        [2, 2, 2, 2, 0, 1],
        [2, 1, 1, 2, 0, 1],
        [2, 2, 2, 2, 0, 1],
        [2, 2, 2, 2, 0, 1],
    ]


def test_coco_has_eighty_classes_and_a_background(coco: Path) -> None:
    categories = [{"id": 1 + number, "name": name} for number, name in enumerate(COCO_CLASSES)]
    write_coco(coco, coco_content(categories=categories, annotations=[]))
    data = read("coco", coco)
    assert len(data.labels) == 81
    assert not data.open(1)[1].any()


def test_annotations_of_images_that_are_not_listed_are_told(coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="clipdistill"):
        read("coco", coco)
    assert "1 annotations are of images that it does not list" in caplog.text


def test_the_smaller_object_lies_on_top_whatever_the_order(coco: Path) -> None:
    before = read("coco", coco).open(1)[1]
    content = coco_content()
    content["annotations"].reverse()
    for number, item in enumerate(content["annotations"]):
        item["id"] = number
    write_coco(coco, content)
    assert np.array_equal(read("coco", coco).open(1)[1], before)


def changed(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """The content with another first annotation."""
    content = coco_content()
    content["annotations"][0] |= changes
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(segmentation=[[0, 0, 1, 1]]), "annotation 1: a polygon must have 3 corners"),
        (changed(segmentation=[[0, 0, 1, 1, 1, 0, 2]]), "of two coordinates each"),
        (changed(segmentation=[[0, 0, 1, 1, 1, 1e300]]), "in pixels"),
        (changed(segmentation=[[0, 0, 1, 1, 1, "0"]]), "not a list of numbers"),
        (changed(segmentation={"counts": "a1b2", "size": [4, 6]}), "its counts are compressed"),
        (changed(segmentation={"counts": [-1], "size": [4, 6]}), "whole numbers, 0 or greater"),
        (changed(segmentation="x"), "neither a list of polygons nor runs"),
        (changed(category_id=5), "annotation 1 has category 5"),
        (changed(image_id="2"), "image_id is '2', no whole number"),
        (coco_content(annotations=[{"id": 1, "image_id": 1, "category_id": 1}]), "an annotation has no segmentation"),
        (coco_content(annotations=[{"id": 1, "segmentation": []}]), "an annotation has no 'image_id'"),
        (coco_content(images=[{"id": 1, "file_name": "1.jpg"}]), "an entry has no 'width'"),
        (coco_content(images=2 * coco_content()["images"]), "has an image or a category twice"),
        (coco_content(categories=2 * coco_content()["categories"]), "has an image or a category twice"),
        (coco_content(images=[{"id": 2, "file_name": "../1.jpg", "width": 6, "height": 4}]), "is not one below"),
        (coco_content(images=[]), "a split has no images"),
        ([], "a list of images, annotations and categories"),
        ({}, "an entry has no 'categories'"),
        (coco_content(annotations={"1": coco_content()["annotations"][0]}), "annotations is no list"),
        (coco_content(annotations=coco_content()["annotations"][3:]), "all of its annotations are of images"),
    ],
)
def test_coco_annotations_that_cannot_be(coco: Path, content: object, message: str) -> None:
    write_coco(coco, content)
    with pytest.raises(DataError, match=re.escape(message)):
        read("coco", coco)


def test_coco_that_does_not_fit_its_images(coco: Path) -> None:
    write_coco(coco, changed(segmentation={"counts": [25], "size": [4, 6]}))
    with pytest.raises(DataError, match=r"annotation 1 cannot be drawn: its runs are of 6 x 4 pixels and fill 25"):
        read("coco", coco).open(1)
    write_jpeg(coco / "val" / "2.jpg", size=(4, 6))
    with pytest.raises(DataError, match=r"instances_val\.json, image 2: the mask has 6 x 4 pixels, its image 4 x 6"):
        read("coco", coco).open(1)
    with pytest.raises(DataError, match=r"instances_train\.json is missing: get the instance annotations"):
        read("coco", coco, "train")
    write_text(coco / "annotations" / "instances_val.json", '{"images": [')
    with pytest.raises(DataError, match="not valid JSON"):
        read("coco", coco)


# Cityscapes


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    write_streets(tmp_path)
    return tmp_path


def test_cityscapes(streets: Path) -> None:
    data = read("cityscapes", streets)
    assert len(data.classes) == 19
    assert (data.background, data.labels) == (False, list(cityscapes.CLASSES))
    assert data.ids == ["bonn/bonn_000000_000019", "ulm/ulm_000000_000019"]
    assert np.array_equal(data.open(1)[1], grid(0, 18, 11, IGNORE))
    assert np.array_equal(data.open(0)[1], grid(IGNORE, 2))
    write_mask(streets / "gtFine" / "val" / "ulm" / "ulm_000000_000019_gtFine_labelIds.png", grid(34), "L")
    with pytest.raises(DataError, match="value 34, which stands for no class: known here are 0 to 33, 255"):
        data.open(1)


def test_cityscapes_that_is_not_there(streets: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \{city\}/\*_leftImg8bit\.png: get leftImg8bit_trainvaltest"):
        read("cityscapes", streets, "train")
    (streets / "gtFine" / "val" / "ulm" / "ulm_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"labelIds\.png cannot be found"):
        read("cityscapes", streets)


# ADE20K


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    write_ade(tmp_path)
    return tmp_path


def test_ade(ade: Path) -> None:
    data = read("ade", ade, "validation")
    assert (data.background, len(data.labels), data.ids) == (False, 150, ["ADE_val_1"])
    assert data.classes[0] == "thing 1"
    assert np.array_equal(data.open(0)[1], grid(IGNORE, 0, 149, 1))
    write_mask(ade / "annotations" / "validation" / "ADE_val_1.png", grid(151), "L")
    with pytest.raises(DataError, match=r"value 151, .* known here are 0 to 150"):
        data.open(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\tx\tName of all\n", "must be a header whose last column is Name"),
        ("Name\nwall\n", "must be a header whose last column is Name"),
        ("Idx\tName\n2\twall\n", "stands where class 1 should"),
        ("Idx\tName\n1\twall\n2\n", "'2' has 1 cells between tabs, and the first line 2; get the file again"),
        ("Idx\tName\n1 wall\n", "'1 wall' has 1 cells"),
        ("Idx\tVal\tName\n1\t9\twall\n2\t8\n", r"'2\\t8' has 2 cells between tabs, and the first line 3"),
        ("Idx\tName\n1\twall\tdoor\n", "has 3 cells"),
        ("Idx\tName\n1\tdoor, gate\n2\tdoor\n", "two classes have 'door'"),
        ("", "must be a header"),
    ],
)
def test_ade_names_that_cannot_be(ade: Path, text: str, message: str) -> None:
    write_text(ade / "objectInfo150.txt", text)
    with pytest.raises(DataError, match=message) as caught:
        read("ade", ade, "validation")
    assert str(ade / "objectInfo150.txt") in str(caught.value)


def test_ade_that_is_not_there(ade: Path) -> None:
    with pytest.raises(DataError, match=r"images/val cannot be listed .*: get ADEChallengeData2016\.zip"):
        read("ade", ade, "val")
    (ade / "objectInfo150.txt").unlink()
    with pytest.raises(DataError, match=r"objectInfo150\.txt is missing"):
        read("ade", ade, "validation")


# A folder of one's own


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write_masked_folder(tmp_path)
    return tmp_path


def test_folder(own: Path) -> None:
    data = read("folder", own)
    assert (data.classes, data.prompts, data.background) == (["cat", "tv"], ["cat", "tv set"], True)
    assert (data.ids, len(data)) == (["a", "b"], 2)
    assert np.array_equal(data.open(0)[1], grid(1, 2, IGNORE, 0))


def test_folder_without_a_background(own: Path) -> None:
    write_text(own / "classes.txt", "dog\ncat\ntv\n")
    data = read("folder", own)
    assert (data.background, data.labels) == (False, ["dog", "cat", "tv"])
    assert data.open(0)[1][0, 1] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("background\n", "there are 1 labels"),
        ("background\nbackground\n", "stands twice"),
        ("\n".join(f"c{number}" for number in range(256)), "there are 256 labels"),
        ("", "names no class"),
        ("Background\ncat\n", "a class is called 'Background'.*its first line"),
        ("_background_\ncat\n", "a class is called '_background_'"),
        ("cat\n__background__\n", "a class is called '__background__'"),
    ],
)
def test_folder_names_that_cannot_be(own: Path, text: str, message: str) -> None:
    write_text(own / "classes.txt", text)
    with pytest.raises(DataError, match=message):
        read("folder", own)


def test_a_class_called_as_the_background_is_refused(voc: Path) -> None:
    write_text(voc / "classes.txt", "cat\nbackground\n")
    with pytest.raises(DataError, match="a class is called 'background'"):
        read("voc", voc)


def test_folder_files_that_cannot_be(own: Path) -> None:
    write_jpeg(own / "val" / "images" / "a.k.png")
    write_jpeg(own / "val" / "images" / "a.webp")
    with pytest.raises(DataError, match="holds 2 images called 'a'"):
        read("folder", own)
    (own / "val" / "images" / "a.webp").unlink()
    with pytest.raises(DataError, match=r"a\.k\.png cannot be found .*; put images into"):
        read("folder", own)
    with pytest.raises(DataError, match="cannot be listed"):
        read("folder", own, "train")
    (own / "train" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images"):
        read("folder", own, "train")
