"""Raw layouts to image table, labels and class list."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raw_layouts import REAL_VOC, Objects, write_coco, write_jpeg, write_text, write_voc

from clipdistill import stage, store
from clipdistill.datasets import images, table
from clipdistill.datasets.format import format_dataset
from clipdistill.datasets.scenes.voc_layout import generate_scenes
from clipdistill.datasets.table import ClassName, ImageTable
from clipdistill.errors import DataError
from clipdistill.params import DatasetParams, ScenesParams

OWN = ("cat", "dog")
SPLITS: dict[str, dict[str, Objects]] = {
    "train": {"t3": [("cat", False)], "t1": [("dog", True)], "t2": [("cat", False), ("dog", False)]},
    "val": {"v2": [], "v1": [("dog", False)]},
}


def params(root: Path | str, **changes: Any) -> DatasetParams:  # noqa: ANN401
    return DatasetParams(**{"name": "mini", "reader": "voc", "root": str(root)} | changes)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_voc(tmp_path / "raw", SPLITS, OWN)
    write_text(tmp_path / "raw" / "classes.txt", "cat\ndog\thound\n")
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def picture(root: Path, image_id: str) -> Path:
    return root / "JPEGImages" / f"{image_id}.jpg"


def test_table_labels_and_classes_agree(root: Path, out: Path) -> None:
    metrics = format_dataset(params(root, difficult="ignore"), out, 1)
    train = ImageTable.load(out / "train" / "images.parquet")
    assert train.ids == ["t1", "t2", "t3"]
    assert train.paths == ["t1.jpg", "t2.jpg", "t3.jpg"]
    assert train.widths.tolist() == [6, 6, 6]
    assert train.heights.tolist() == [4, 4, 4]
    for row, path in enumerate(train.paths):
        data = (root / "JPEGImages" / path).read_bytes()
        assert train.sizes[row] == len(data)
        assert train.hashes[row] == images.content_hash(data)
    assert table.read_labels(out / "train" / "labels.zarr", train).tolist() == [[0, -1], [1, 1], [1, 0]]
    val = ImageTable.load(out / "val" / "images.parquet")
    assert table.read_labels(out / "val" / "labels.zarr", val).tolist() == [[0, 1], [0, 0]]
    assert table.read_classes(out / "classes.yaml") == [ClassName("cat", "cat"), ClassName("dog", "hound")]
    assert metrics == {
        "dataset": "mini",
        "reader": "voc",
        "classes": 2,
        "difficult": "ignore",
        "train": {
            "images": 3,
            "labelled_images": 3,
            "positives": 3,
            "labels_per_image": 1.0,
            "unknown_share": round(1 / 6, 6),
            "positives_per_class": {"cat": 2, "dog": 1},
            "left_out": {},
            "left_out_images": [],
        },
        "val": {
            "images": 2,
            "labelled_images": 2,
            "positives": 1,
            "labels_per_image": 0.5,
            "unknown_share": 0.0,
            "positives_per_class": {"cat": 0, "dog": 1},
            "left_out": {},
            "left_out_images": [],
        },
        "contents_in_both_splits": 0,
        "notes": {},
        "open_vocabulary": {
            "seen": 2,
            "unseen": 0,
            "labels_per_image": {"train": 1.0, "val": 0.5},
            "unseen_positives": 0,
        },
    }
    json.dumps(metrics, allow_nan=False)


def test_the_open_vocabulary_is_written_beside_the_classes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = stage.Paths("mini")
    out = paths.data
    metrics = format_dataset(params(root, unseen=["cat"]), out, 1)
    assert table.read_classes(out / "classes.yaml") == [ClassName("cat", "cat"), ClassName("dog", "hound")]
    assert table.read_classes(paths.open_classes) == [
        ClassName("dog", "hound"), ClassName("cat", "cat", seen=False)
    ]  # fmt: skip
    for split in ("train", "val"):
        loaded = ImageTable.load(out / split / "images.parquet")
        labels = table.read_labels(out / split / "labels.zarr", loaded)
        assert table.read_labels(paths.open_labels(split), loaded).tolist() == labels[:, [1, 0]].tolist()
    assert metrics["open_vocabulary"] == {
        "seen": 1,
        "unseen": 1,
        "labels_per_image": {"train": 1.0, "val": 0.5},
        "unseen_positives": 0,
    }


def test_without_unseen_classes_the_open_vocabulary_has_the_bytes_of_the_classes(root: Path, out: Path) -> None:
    format_dataset(params(root), out, 1)
    assert (out / "open" / "classes.yaml").read_bytes() == (out / "classes.yaml").read_bytes()
    assert (out / "classes.yaml").read_text() == "- name: cat\n  prompt: cat\n- name: dog\n  prompt: hound\n"


def test_rows_of_the_open_labels_belong_to_the_images_that_are_left(root: Path, out: Path) -> None:
    write_text(root / "attributes.txt", "red\nblue\n")
    write_text(root / "unseen.txt", "blue dog\n")
    colours = {"t1": "red", "t2": "red", "t3": "blue", "v1": "blue", "v2": "red"}
    for image_id, colour in colours.items():
        xml = f"<annotation><object><name>dog</name><color>{colour}</color></object></annotation>"
        write_text(root / "Annotations" / f"{image_id}.xml", xml)
    write_text(root / "ImageSets" / "Main" / "train.txt", "t3\nt2\nt1\n")
    write_text(picture(root, "t2"), "no image")
    metrics = format_dataset(params(root, open_vocabulary="attributes", on_problem="leave_out"), out, 2)
    loaded = ImageTable.load(out / "train" / "images.parquet")
    assert loaded.ids == ["t1", "t3"]
    assert [item.name for item in table.read_classes(out / "open" / "classes.yaml")] == [
        "red cat", "blue cat", "red dog", "blue dog"
    ]  # fmt: skip
    assert table.read_labels(out / "open" / "train.zarr", loaded).tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]
    assert metrics["open_vocabulary"]["unseen_positives"] == 1


def test_bytes_do_not_depend_on_workers_or_on_the_order_of_the_list(root: Path, tmp_path: Path) -> None:
    format_dataset(params(root), tmp_path / "one", 1)
    path = root / "ImageSets" / "Main" / "train.txt"
    path.write_text("\n".join(reversed(path.read_text().split())))
    format_dataset(params(root), tmp_path / "two", 4)
    files = sorted(item.relative_to(tmp_path / "one") for item in (tmp_path / "one").rglob("*") if item.is_file())
    assert len(files) > 6
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_relative_root_stays_relative(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    format_dataset(params("raw"), out, 1)
    loaded = ImageTable.load(out / "val" / "images.parquet")
    assert loaded.root == Path("raw/JPEGImages")
    assert loaded.open(0).size == (6, 4)
    here = str(root.parent).encode()
    assert all(here not in item.read_bytes() for item in out.rglob("*") if item.is_file())


def test_sizes_are_those_of_the_upright_image(root: Path, out: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 5)).save(picture(root, "t1"), exif=exif)
    format_dataset(params(root), out, 1)
    train = ImageTable.load(out / "train" / "images.parquet")
    assert (train.widths[0], train.heights[0]) == (5, 9)
    assert train.open(0).size == (5, 9)


def test_an_image_that_changed_since_is_noticed(root: Path, out: Path) -> None:
    format_dataset(params(root), out, 1)
    train = ImageTable.load(out / "train" / "images.parquet")
    train.open(0)
    write_jpeg(picture(root, "t1"), seed=99)
    with pytest.raises(DataError, match=r"t1\.jpg: its bytes have changed"):
        train.open(0)
    picture(root, "t1").unlink()
    with pytest.raises(DataError, match=r"t1\.jpg: cannot be read"):
        train.open(0)


def spoil(root: Path) -> None:
    """Four problems in `train`, so that one image is left, and none in `val`."""
    for number, image_id in enumerate(("t4", "t5")):
        write_jpeg(picture(root, image_id), 50 + number)
        write_text(root / "Annotations" / f"{image_id}.xml", "<annotation/>")
    lines = ["t1", "t2", "t3", "t3", "t4", "t5"]
    write_text(root / "ImageSets" / "Main" / "train.txt", "\n".join(lines))
    write_text(picture(root, "t1"), "<html>not found</html>")
    picture(root, "t2").write_bytes(picture(root, "t2").read_bytes()[:-200])
    picture(root, "t4").write_bytes(b"")
    (root / "Annotations" / "t5.xml").unlink()


def test_problems_stop_the_stage_and_nothing_is_written(root: Path, out: Path) -> None:
    spoil(root)
    with pytest.raises(DataError) as caught:
        format_dataset(params(root), out, 2)
    text = str(caught.value)
    assert "5 problem(s) in data set mini" in text
    for count in ("1 duplicate_id", "1 missing_annotation", "3 undecodable_image"):
        assert f"  {count}\n" in text
    assert "t1.jpg: is not an image of a known format" in text
    assert "t4.jpg: is empty" in text
    assert "dataset.on_problem: leave_out" in text
    assert not out.exists()


def test_problems_leave_images_out_and_are_counted_and_logged(
    root: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(root)
    with caplog.at_level(logging.WARNING, "clipdistill.datasets.format"):
        metrics = format_dataset(params(root, on_problem="leave_out"), out, 2)
    train = ImageTable.load(out / "train" / "images.parquet")
    assert train.ids == ["t3"]
    assert table.read_labels(out / "train" / "labels.zarr", train).tolist() == [[1, 0]]
    assert metrics["train"]["images"] == 1
    assert metrics["train"]["left_out"] == {"duplicate_id": 1, "missing_annotation": 1, "undecodable_image": 3}
    assert [line.split(":")[0] for line in metrics["train"]["left_out_images"]] == ["t3", "t5", "t1", "t2", "t4"]
    assert metrics["val"]["left_out"] == {}
    assert len(caplog.records) == 5
    assert "undecodable_image: train t2: " in caplog.text


SOUND: dict[bytes, tuple[tuple[int, int], str, dict[str, Any]]] = {
    b"a b.jpg": ((8, 6), "RGB", {}),
    b"cmyk.jpg": ((8, 6), "CMYK", {}),
    b"gray.jpg": ((8, 6), "L", {}),
    b"sixteen.png": ((8, 6), "I;16", {}),
    b"palette.gif": ((8, 6), "P", {}),
    b"alpha.png": ((8, 6), "RGBA", {}),
    b"one.png": ((1, 1), "RGB", {}),
    b"strip.png": ((1, 20_000), "RGB", {}),
    b"new\nline, \xc3\xbc.jpg": ((8, 6), "RGB", {}),
    b"really-a-png.jpg": ((8, 6), "RGB", {"format": "PNG"}),
    b"x" * 250 + b".jpg": ((8, 6), "RGB", {}),
}


def test_a_folder_of_everything_gives_each_image_or_its_problem(tmp_path: Path, out: Path) -> None:
    train = tmp_path / "raw" / "train"
    write_jpeg(tmp_path / "raw" / "val" / "v.jpg")
    train.mkdir()
    write_text(tmp_path / "raw" / "classes.txt", "cat\n<script>\n")
    for name, (size, mode, options) in SOUND.items():
        Image.new(mode, size).save(train / os.fsdecode(name), **options)
    Image.new("1", (12_000, 12_000)).save(train / "bomb.png")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(train / "float.tiff")
    (train / "zero.jpg").write_bytes(b"")
    (train / "page.jpg").write_bytes(b"<html>not found</html>")
    (train / "cut.png").write_bytes((train / "a b.jpg").read_bytes()[:200])
    (train / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    (train / "loop.jpg").symlink_to("loop.jpg")
    (train / "out.jpg").symlink_to(write_jpeg(tmp_path / "secret.jpg"))
    os.mkfifo(train / "pipe.jpg")
    metrics = format_dataset(params(tmp_path / "raw", reader="folder", on_problem="leave_out"), out, 2)
    found = ImageTable.load(out / "train" / "images.parquet")
    assert found.ids == sorted(f"train/{name.decode()}" for name in SOUND)
    sizes = {found.ids[row]: found.open(row).size for row in range(len(found))}
    assert sizes == {f"train/{name.decode()}": size for name, (size, _, _) in SOUND.items()}
    assert metrics["train"]["left_out"] == {
        "bad_name": 1, "missing_image": 2, "outside_root": 1, "undecodable_image": 5
    }  # fmt: skip
    listed = {line.split(":")[0] for line in metrics["train"]["left_out_images"]}
    broken = ("bomb.png", "float.tiff", "zero.jpg", "page.jpg", "cut.png", "caf\\udce9.jpg")
    assert listed == {f"train/{name}" for name in (*broken, "loop.jpg", "out.jpg", "pipe.jpg")}


def test_an_image_beyond_the_limit_is_refused_undecoded(root: Path, out: Path) -> None:
    write_jpeg(picture(root, "v1"), size=(30, 20))
    with pytest.raises(DataError, match=r"30 x 20 pixels are more than dataset\.max_pixels = 100"):
        format_dataset(params(root, max_pixels=100), out, 1)
    metrics = format_dataset(params(root, max_pixels=600), out, 1)
    assert metrics["val"]["images"] == 2
    assert ImageTable.load(out / "val" / "images.parquet").max_pixels == 600


def test_a_link_out_of_the_root_is_never_opened(root: Path, out: Path) -> None:
    outside = write_jpeg(root.parent / "secret.jpg")
    picture(root, "t1").unlink()
    picture(root, "t1").symlink_to(outside)
    with pytest.raises(DataError, match=r"1 outside_root"):
        format_dataset(params(root), out, 1)
    metrics = format_dataset(params(root, on_problem="leave_out"), out, 1)
    assert metrics["train"]["left_out"] == {"outside_root": 1}


def test_an_image_of_both_splits_leaves_training(root: Path, out: Path) -> None:
    with (root / "ImageSets" / "Main" / "train.txt").open("a") as stream:
        stream.write("v1\n")
    metrics = format_dataset(params(root, on_problem="leave_out"), out, 1)
    assert metrics["train"]["left_out"] == {"duplicate_id": 1}
    assert (metrics["train"]["images"], metrics["val"]["images"]) == (3, 2)


def test_the_same_picture_under_two_names_is_counted(root: Path, out: Path) -> None:
    picture(root, "t1").write_bytes(picture(root, "v1").read_bytes())
    assert format_dataset(params(root), out, 1)["contents_in_both_splits"] == 1


@pytest.mark.parametrize("on_problem", ["stop", "leave_out"])
def test_an_empty_split_always_stops(root: Path, out: Path, on_problem: str) -> None:
    for image_id in ("v1", "v2"):
        picture(root, image_id).unlink()
    with pytest.raises(DataError, match=r"(?s)1 empty_split.*val .*no image is left.*dataset\.val"):
        format_dataset(params(root, on_problem=on_problem), out, 1)
    write_text(root / "ImageSets" / "Main" / "val.txt", "\n")
    with pytest.raises(DataError, match="empty_split"):
        format_dataset(params(root, on_problem=on_problem), out, 1)
    assert not out.exists()


def test_ten_problems_are_shown_and_all_are_kept(root: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = [f"gone{number:03d}" for number in range(150)]
    write_text(root / "ImageSets" / "Main" / "train.txt", "\n".join(["t3", *ids]))
    with pytest.raises(DataError) as caught:
        format_dataset(params(root), out, 1)
    assert str(caught.value).count("gone") == 2 * 10
    assert "  150 missing_image\n" in str(caught.value)
    assert "and 140 more" in str(caught.value)
    caplog.clear()
    # Whatever level a command of another test has left.
    with caplog.at_level(logging.WARNING, "clipdistill.datasets.format"):
        metrics = format_dataset(params(root, on_problem="leave_out"), out, 1)
    assert metrics["train"]["left_out"] == {"missing_image": 150}
    assert len(metrics["train"]["left_out_images"]) == 150
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 100


def test_a_folder_without_labels_is_lawful(tmp_path: Path, out: Path) -> None:
    for number in range(5):
        write_jpeg(tmp_path / "mine" / f"{number} ,'\n🐟.jpg", number)
    write_text(tmp_path / "mine" / "classes.txt", "cat\ndog\n")
    metrics = format_dataset(params(tmp_path / "mine", reader="folder"), out, 2)
    assert "difficult" not in metrics
    assert metrics["train"]["images"] + metrics["val"]["images"] == 5
    assert metrics["train"]["unknown_share"] == 1.0
    assert metrics["train"]["labels_per_image"] is None
    assert metrics["notes"]["images_without_labels"] == 5
    train = ImageTable.load(out / "train" / "images.parquet")
    assert (table.read_labels(out / "train" / "labels.zarr", train) == -1).all()
    store.write_json(tmp_path / "metrics.json", metrics)


def test_notes_of_the_reader_reach_the_metrics(tmp_path: Path, out: Path) -> None:
    write_coco(tmp_path, "train2017", {1: [3], 2: []}, {3: "cat"})
    write_coco(tmp_path, "val2017", {4: [3]}, {3: "cat"})
    metrics = format_dataset(params(tmp_path, reader="coco", train="train2017", val="val2017"), out, 1)
    assert metrics["notes"]["images_without_objects"] == {"train": 1, "val": 0}
    assert metrics["train"]["images"] == 1


def test_the_generated_data_set_is_read(tmp_path: Path, out: Path) -> None:
    generate_scenes(ScenesParams(train_images=3, val_images=2, image_size=64), tmp_path / "scenes", workers=1)
    metrics = format_dataset(params(tmp_path / "scenes", name="scenes"), out, 1)
    assert (metrics["train"]["images"], metrics["val"]["images"]) == (3, 2)
    assert (metrics["open_vocabulary"]["seen"], metrics["open_vocabulary"]["unseen"]) == (72, 24)
    assert metrics["open_vocabulary"]["labels_per_image"]["val"] >= metrics["val"]["labels_per_image"]
    assert metrics["classes"] == len(table.read_classes(out / "classes.yaml")) > 2
    for split in ("train", "val"):
        assert 1 <= metrics[split]["labels_per_image"] <= 4
        assert ImageTable.load(out / split / "images.parquet").widths.tolist() == [64] * metrics[split]["images"]


@pytest.mark.skipif(not REAL_VOC.is_dir(), reason="the real VOC subset is not here")
def test_real_photographs(out: Path) -> None:
    metrics = format_dataset(params(REAL_VOC, difficult="positive"), out, 2)
    assert (metrics["train"]["images"], metrics["val"]["images"]) == (70, 40)
    assert metrics["train"]["positives"] + metrics["val"]["positives"] == 175
    assert metrics["contents_in_both_splits"] == 0
    for split in ("train", "val"):
        loaded = ImageTable.load(out / split / "images.parquet")
        labels = table.read_labels(out / split / "labels.zarr", loaded)
        assert labels.shape == (len(loaded), 20)
        np.testing.assert_array_equal((labels == 1).sum(axis=0), list(metrics[split]["positives_per_class"].values()))
        assert loaded.open(0).size == (loaded.widths[0], loaded.heights[0])
