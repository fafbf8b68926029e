"""The `formatted_*.npy` layout, both ways."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from raw_layouts import write_jpeg, write_text

from clipdistill.datasets import formatted
from clipdistill.datasets.prompt_names import COCO_CLASSES, NUSWIDE_CLASSES, VOC_CLASSES
from clipdistill.errors import DataError, ParamsError
from clipdistill.params import DatasetParams

TRAIN, VAL = ["2008_000008.jpg", "deep/b.jpg"], ["c.jpg"]


def params(root: Path, **changes: Any) -> DatasetParams:  # noqa: ANN401
    default = {"name": "mini", "reader": "formatted", "root": str(root), "images": str(root / "images")}
    return DatasetParams(**default | changes)


def write(root: Path, columns: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    labels = (np.arange(3 * columns).reshape(3, columns) % 3 == 0).astype(np.int8)
    formatted.write_formatted(root, "train", TRAIN, labels[:2])
    formatted.write_formatted(root, "val", VAL, labels[2:])
    for number, path in enumerate([*TRAIN, *VAL]):
        write_jpeg(root / "images" / path, number)
    return labels[:2], labels[2:]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, 3)
    write_text(tmp_path / "classes.txt", "cat\ndog\nfish\tgoldfish\n")
    return tmp_path


def test_what_is_written_is_read_again(root: Path) -> None:
    data = formatted.read(params(root))
    assert data.problems == []
    assert data.image_root == root / "images"
    assert data.splits["train"].ids == ["2008_000008", "deep/b"]
    assert data.splits["train"].paths == TRAIN
    assert data.splits["train"].labels.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert data.splits["val"].paths == VAL
    assert data.splits["val"].labels.dtype == np.int8
    assert [(item.name, item.prompt) for item in data.classes][2] == ("fish", "goldfish")


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.int8, st.tuples(st.integers(1, 6), st.just(20)), elements=st.sampled_from([0, 1])))
def test_round_trip_of_any_labels(tmp_path_factory: pytest.TempPathFactory, labels: npt.NDArray[np.int8]) -> None:
    root = tmp_path_factory.mktemp("formatted")
    paths = [f"ü{row}.jpg" for row in range(len(labels))]
    for path in [*paths, "v.jpg"]:
        write_jpeg(root / "images" / path)
    formatted.write_formatted(root, "train", paths, labels)
    formatted.write_formatted(root, "val", ["v.jpg"], labels[:1])
    data = formatted.read(params(root))
    assert data.splits["train"].paths == paths
    np.testing.assert_array_equal(data.splits["train"].labels, labels)


def test_the_files_have_the_published_types(root: Path) -> None:
    images = np.load(root / "formatted_train_images.npy", allow_pickle=False)
    labels = np.load(root / "formatted_train_labels.npy", allow_pickle=False)
    assert images.dtype.kind == "U"
    assert images.tolist() == TRAIN
    assert labels.dtype == np.float64
    assert labels.shape == (2, 3)


def test_unknown_labels_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown \(-1\).*dataset\.difficult"):
        formatted.write_formatted(tmp_path, "train", ["a.jpg"], np.array([[1, -1]], np.int8))
    with pytest.raises(DataError, match="2 image paths, but 1 rows"):
        formatted.write_formatted(tmp_path, "train", ["a.jpg", "b.jpg"], np.array([[1, 0]], np.int8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [VOC_CLASSES, COCO_CLASSES, NUSWIDE_CLASSES])
def test_class_names_of_published_sets_are_known_by_their_number(tmp_path: Path, names: tuple[str, ...]) -> None:
    train, _ = write(tmp_path, len(names))
    data = formatted.read(params(tmp_path))
    assert [item.name for item in data.classes] == list(names)
    np.testing.assert_array_equal(data.splits["train"].labels, train)
    prompts = {item.name: item.prompt for item in data.classes}
    assert prompts.get("tvmonitor", "tv monitor") == "tv monitor"


def test_another_number_of_classes_asks_for_names(tmp_path: Path) -> None:
    write(tmp_path, 7)
    with pytest.raises(DataError, match=r"7 columns, .*add .*classes\.txt"):
        formatted.read(params(tmp_path))
    write_text(tmp_path / "classes.txt", "cat\n")
    with pytest.raises(DataError, match=r"names 1 classes, the labels have 7 columns"):
        formatted.read(params(tmp_path))


def test_the_image_root_must_be_given(root: Path) -> None:
    for images in ("", str(root / "none")):
        with pytest.raises(DataError, match=r"dataset\.images = '.*' is no folder"):
            formatted.read(params(root, images=images))


def test_a_prompt_name_for_an_unknown_class_is_refused(root: Path) -> None:
    with pytest.raises(ParamsError, match=r"dataset\.prompt_names\.dgo"):
        formatted.read(params(root, prompt_names={"dgo": "dog"}))


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:  # noqa: ANN401
        return os.mkdir, (str(self.path),)


def test_pickled_objects_are_never_loaded(root: Path) -> None:
    trap = np.array([Trap(root / "sprung")], dtype=object)
    np.save(root / "formatted_val_images.npy", trap, allow_pickle=True)
    with pytest.raises(DataError, match=r"formatted_val_images\.npy is not a plain NumPy array"):
        formatted.read(params(root))
    assert not (root / "sprung").exists()


@pytest.mark.parametrize(
    ("what", "array", "message"),
    [
        ("images", np.array([1, 2]), "has type int64"),
        ("images", np.array([["a.jpg", "b.jpg"]]), "2 axes"),
        ("images", np.array([0x110000, 97], np.uint32).view("U1"), "characters that there are none of"),
        ("images", np.array([97, 0x110000], ">u4").view(">U1"), "characters that there are none of"),
        ("images", np.array(["a.jpg"]), "has 2 rows, but there are 1 image paths"),
        ("labels", np.array(["a", "b"]), "labels are numbers with two axes"),
        ("labels", np.ones(2), "labels are numbers with two axes"),
        ("labels", np.ones((3, 3)), "has 3 rows, but there are 2 image paths"),
        ("labels", np.array([[1.0, 0, 0], [0, -1, 1]]), r"row 1 holds -1\.0; .*\(observed labels"),
        ("labels", np.array([[1.0, 0, 0], [0, np.nan, 1]]), "row 1 holds nan"),
        ("labels", np.array([[0.5, 0, 0], [0, 0, 1]]), "row 0 holds 0.5"),
        ("labels", np.ones((2, 4)), "the splits have 3 and 4 classes"),
    ],
)
def test_arrays_of_another_form_are_refused(root: Path, what: str, array: Any, message: str) -> None:  # noqa: ANN401
    np.save(root / f"formatted_train_{what}.npy", array)
    with pytest.raises(DataError, match=message):
        formatted.read(params(root))


def test_files_that_are_no_arrays_are_refused(root: Path) -> None:
    path = root / "formatted_train_labels.npy"
    whole = path.read_bytes()
    headers = [whole.replace(b"(2, 3)", b"(9**9)"), whole.replace(b"}", b"{")]
    for content in (b"", b"text", whole[:-1], whole[:20], *headers):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"formatted_train_labels\.npy is not a plain NumPy array"):
            formatted.read(params(root))
    np.savez(root / "archive.npz", a=np.ones(1))
    (root / "archive.npz").rename(path)
    with pytest.raises(DataError, match="is an archive of arrays"):
        formatted.read(params(root))
    path.unlink()
    with pytest.raises(DataError, match="is missing: put"):
        formatted.read(params(root))


def test_paths_of_no_length_are_refused(root: Path) -> None:
    """A thousand million of them fit into a file of 128 bytes."""
    path = root / "formatted_train_images.npy"
    np.save(path, np.array(["a"]))
    path.write_bytes(path.read_bytes().replace(b"<U1", b"<U0").replace(b"(1,)", b"(9,)"))
    with pytest.raises(DataError, match="has type <U0 and 1 axes; image paths are unicode"):
        formatted.read(params(root))


def test_images_that_are_missing_outside_or_listed_twice_are_problems(root: Path) -> None:
    write_jpeg(root / "secret.jpg")
    paths = ["gone.jpg", "../secret.jpg", "deep/b.jpg", "deep/b.jpg", "c.jpg"]
    formatted.write_formatted(root, "train", paths, np.eye(5, 3, dtype=np.int8))
    data = formatted.read(params(root))
    assert [(item.kind, item.where) for item in data.problems] == [
        ("missing_image", "gone"),
        ("outside_root", "../secret"),
        ("duplicate_id", "deep/b"),
        ("duplicate_id", "c"),
    ]
    assert data.splits["train"].paths == ["deep/b.jpg"]
    assert data.splits["train"].labels.tolist() == [[0, 0, 1]]
