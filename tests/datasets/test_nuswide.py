"""The NUS-WIDE reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_layouts import write_jpeg, write_nuswide, write_text

from clipdistill.datasets import nuswide
from clipdistill.errors import DataError
from clipdistill.params import DatasetParams

NAMES = ("sky", "bear", "cars")
TRAIN = {"actor/0002_22.jpg": [1, 0, 0], "zoo/0004_44.jpg": [0, 1, 1]}
TEST = {"actor/0001_11.jpg": [0, 0, 0], "sky/0003_33.jpg": [1, 1, 0]}


def params(root: Path, **changes: Any) -> DatasetParams:  # noqa: ANN401
    return DatasetParams(
        **{"name": "mini", "reader": "nuswide", "root": str(root), "train": "Train", "val": "Test"} | changes
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_nuswide(tmp_path, TRAIN, TEST, NAMES)


def test_rows_of_the_labels_belong_to_the_image_list_and_classes_are_alphabetical(root: Path) -> None:
    data = nuswide.read(params(root))
    assert data.problems == []
    assert data.image_root == root / "Flickr"
    assert [item.name for item in data.classes] == ["bear", "cars", "sky"]
    train = data.splits["train"]
    assert train.ids == ["actor/0002_22", "zoo/0004_44"]
    assert train.paths == ["actor/0002_22.jpg", "zoo/0004_44.jpg"]
    assert train.labels.tolist() == [[0, 0, 1], [1, 1, 0]]
    assert train.labels.dtype == np.int8
    assert data.splits["val"].labels.tolist() == [[0, 0, 0], [1, 0, 1]]


def test_the_images_may_lie_elsewhere(root: Path) -> None:
    (root / "Flickr").rename(root / "pictures")
    data = nuswide.read(params(root, images=str(root / "pictures")))
    assert data.problems == []
    assert data.image_root == root / "pictures"


def test_missing_images_are_problems(root: Path) -> None:
    (root / "Flickr" / "zoo" / "0004_44.jpg").unlink()
    data = nuswide.read(params(root))
    assert [(item.kind, item.split, item.where) for item in data.problems] == [
        ("missing_image", "train", "zoo/0004_44")
    ]
    assert data.splits["train"].labels.tolist() == [[0, 0, 1]]


def test_a_path_without_labels_is_a_problem(root: Path) -> None:
    write_jpeg(root / "Flickr" / "new.jpg")
    write_text(root / "ImageList" / "TestImagelist.txt", "new.jpg\nsky\\0003_33.jpg\n")
    data = nuswide.read(params(root))
    assert [(item.kind, item.split, item.where) for item in data.problems] == [("missing_annotation", "val", "new.jpg")]
    assert data.splits["val"].labels.tolist() == [[1, 0, 1]]


def test_a_path_that_leaves_the_folder_is_never_opened(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "secret.jpg")
    root = write_nuswide(tmp_path / "root", TRAIN, TEST | {"../../secret.jpg": [1, 1, 1]}, NAMES)
    data = nuswide.read(params(root))
    assert [(item.kind, item.split, item.where) for item in data.problems] == [("outside_root", "val", "../../secret")]


def test_a_concept_name_cannot_leave_the_folder(root: Path) -> None:
    write_text(root / "ConceptsList" / "Concepts81.txt", "x/../../secret\n")
    with pytest.raises(DataError, match=r"concept 'x/\.\./\.\./secret': .*not one below"):
        nuswide.read(params(root))


def test_an_image_in_both_lists_is_a_leak(root: Path) -> None:
    write_text(root / "ImageList" / "TrainImagelist.txt", "zoo\\0004_44.jpg\nsky\\0003_33.jpg\n")
    data = nuswide.read(params(root))
    assert data.splits["train"].ids == ["zoo/0004_44"]
    assert [(item.kind, item.split, item.where) for item in data.problems] == [("duplicate_id", "train", "sky/0003_33")]


@pytest.mark.parametrize(
    ("text", "message"),
    [("1\n0\n1\n", "has 3 rows, .* has 4"), ("1\n0\n-1\n0\n", "row 3 is '-1', neither 0 nor 1")],
)
def test_labels_that_do_not_fit_are_refused(root: Path, text: str, message: str) -> None:
    write_text(root / "AllLabels" / "Labels_sky.txt", text)
    with pytest.raises(DataError, match=message):
        nuswide.read(params(root))


@pytest.mark.parametrize("text", ["", "sky\nsky\n"])
def test_a_concept_list_that_names_nothing_or_one_twice_is_refused(root: Path, text: str) -> None:
    write_text(root / "ConceptsList" / "Concepts81.txt", text)
    with pytest.raises(DataError, match="is empty or names a concept twice"):
        nuswide.read(params(root))


@pytest.mark.parametrize(
    "path",
    [
        "ConceptsList/Concepts81.txt",
        "ImageList/Imagelist.txt",
        "ImageList/TestImagelist.txt",
        "AllLabels/Labels_bear.txt",
    ],
)
def test_a_missing_file_says_what_to_get(root: Path, path: str) -> None:
    (root / path).unlink()
    with pytest.raises(DataError, match=rf"{Path(path).name}.*ask the publisher of NUS-WIDE"):
        nuswide.read(params(root))


def test_nothing_there_says_what_to_get(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Flickr is missing: ask the publisher"):
        nuswide.read(params(tmp_path))
