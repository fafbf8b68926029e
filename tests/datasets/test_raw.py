"""The fence around a folder, and how images are admitted to a split."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_layouts import write_jpeg, write_text

from clipdistill.datasets import raw
from clipdistill.datasets.raw import Fence, Problem, RawSplit
from clipdistill.datasets.table import ClassName
from clipdistill.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_jpeg(tmp_path / "outside.jpg")
    write_jpeg(tmp_path / "root" / "a.jpg")
    write_jpeg(tmp_path / "root" / "deep" / "b, 'ö' 🐟\n.jpg")
    return tmp_path / "root"


@pytest.mark.parametrize("name", ["a.jpg", "deep/b, 'ö' 🐟\n.jpg", "./a.jpg"])
def test_fence_lets_files_below_it_pass(root: Path, name: str) -> None:
    assert Fence(root).check(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "../outside.jpg",
        "deep/../../outside.jpg",
        "deep/../a.jpg",
        "/etc/passwd",
        "file:///etc/passwd",
        "..\\outside.jpg",
        "\\\\host\\a.jpg",
        "..",
    ],
)
def test_fence_refuses_paths_that_leave_it(root: Path, name: str) -> None:
    refusal = Fence(root).check(name)
    assert refusal is not None
    assert refusal[0] == "outside_root"


def test_fence_refuses_an_absolute_path_even_to_a_file_below_it(root: Path) -> None:
    refusal = Fence(root).check(str(root / "a.jpg"))
    assert refusal is not None
    assert refusal[0] == "outside_root"


@pytest.mark.parametrize("name", ["none.jpg", "", "deep", "a.jpg/b.jpg", "x" * 300 + ".jpg"])
def test_fence_reports_what_is_no_file(root: Path, name: str) -> None:
    assert (Fence(root).check(name) or ("",))[0] == "missing_image"
    assert (Fence(root, "missing_annotation").check(name) or ("",))[0] == "missing_annotation"


@pytest.mark.parametrize("name", ["zero\0byte.jpg", os.fsdecode(b"caf\xe9.jpg"), "\ud800.jpg"])
def test_fence_reports_names_that_a_table_cannot_hold(root: Path, name: str) -> None:
    assert (Fence(root).check(name) or ("",))[0] == "bad_name"


def test_fence_follows_links_only_where_they_stay_inside(root: Path) -> None:
    (root / "in.jpg").symlink_to(root / "a.jpg")
    (root / "out.jpg").symlink_to(root.parent / "outside.jpg")
    (root / "elsewhere").symlink_to(root.parent)
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    fence = Fence(root)
    assert fence.check("in.jpg") is None
    assert (fence.check("out.jpg") or ("",))[0] == "outside_root"
    assert (fence.check("elsewhere/outside.jpg") or ("",))[0] == "outside_root"
    assert (fence.check("loop.jpg") or ("",))[0] == "missing_image"


def test_fence_takes_a_root_that_is_itself_a_link(root: Path) -> None:
    (root.parent / "link").symlink_to(root)
    assert Fence(root.parent / "link").check("a.jpg") is None


def test_fence_is_not_fooled_by_a_sibling_with_the_same_beginning(root: Path) -> None:
    write_jpeg(root.parent / "root2" / "a.jpg")
    (root / "out.jpg").symlink_to(root.parent / "root2" / "a.jpg")
    assert (Fence(root).check("out.jpg") or ("",))[0] == "outside_root"


def test_fence_takes_files_that_dvc_links_from_its_cache(root: Path) -> None:
    cached = write_jpeg(root.parent / "cache" / "files" / "md5" / "0a" / ("1" * 30))
    (root / "linked.jpg").symlink_to(cached)
    (root / "almost.jpg").symlink_to(write_jpeg(cached.parent / "passwd"))
    assert Fence(root).check("linked.jpg") is None
    assert (Fence(root).check("almost.jpg") or ("",))[0] == "outside_root"


def test_admit_keeps_the_first_of_equal_ids(root: Path) -> None:
    problems: list[Problem] = []
    rows = raw.admit(Fence(root), "train", ["a", "b", "a", "c"], ["a.jpg", "no.jpg", "a.jpg", "a.jpg"], problems)
    assert rows == [0, 3]
    assert [(item.kind, item.where) for item in problems] == [("missing_image", "b"), ("duplicate_id", "a")]


def test_assemble_takes_an_image_of_both_splits_out_of_training() -> None:
    train = RawSplit(["a", "b", "c"], ["a.jpg", "b.jpg", "c.jpg"], np.array([[1], [0], [-1]], np.int8))
    val = RawSplit(["b"], ["b.jpg"], np.array([[1]], np.int8))
    data = raw.assemble(Path("images"), [ClassName("cat", "cat")], {"train": train, "val": val}, [])
    assert data.splits["train"].ids == ["a", "c"]
    assert data.splits["train"].labels.tolist() == [[1], [-1]]
    assert data.splits["val"].ids == ["b"]
    assert [(item.kind, item.split, item.where) for item in data.problems] == [("duplicate_id", "train", "b")]


def test_a_selection_takes_the_open_labels_along_where_there_are_any() -> None:
    closed = RawSplit(["a", "b"], ["a.jpg", "b.jpg"], np.array([[1], [0]], np.int8))
    assert closed.take([1]).open_labels is None
    whole = RawSplit(closed.ids, closed.paths, closed.labels, np.array([[1, 0], [0, 1]], np.int8))
    picked = whole.take([1, 0])
    assert picked.ids == ["b", "a"]
    assert picked.open_labels is not None
    assert picked.open_labels.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(("path", "expected"), [("a/b.c.jpg", "a/b.c"), ("a.b/c", "a.b/c"), (".jpg", ""), ("x", "x")])
def test_path_id_drops_the_suffix_alone(path: str, expected: str) -> None:
    assert raw.path_id(path) == expected


@given(st.text())
def test_a_problem_is_always_one_line_that_can_be_encoded(text: str) -> None:
    line = str(Problem("missing_image", "train", text, text))
    assert line.isprintable()
    line.encode()


def test_a_plain_name_is_reported_as_it_stands() -> None:
    assert raw.printable("Käfer 🐞.jpg") == "Käfer 🐞.jpg"
    assert raw.printable("a\nb") == "a\\nb"


def test_read_lines_takes_marks_and_any_line_end(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n  two \n\nthree")
    assert raw.read_lines(path, "") == ["one", "two", "three"]


def test_read_text_explains_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt is missing: get it"):
        raw.read_text(tmp_path / "none.txt", "get it")
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 text \(byte 3\)"):
        raw.read_text(path, "get it")
    with pytest.raises(DataError, match=r"cannot be read"):
        raw.read_text(tmp_path, "get it")
    with pytest.raises(DataError, match=r"is missing"):
        raw.read_text(write_text(tmp_path / "file", "") / "below", "get it")
