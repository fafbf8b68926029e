"""The reader of one's own folder of images."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_layouts import write_jpeg, write_text

from clipdistill.datasets import folder
from clipdistill.errors import DataError, ParamsError
from clipdistill.params import DatasetParams


def params(root: Path, **changes: Any) -> DatasetParams:  # noqa: ANN401
    return DatasetParams(**{"name": "mine", "reader": "folder", "root": str(root)} | changes)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits by folder."""
    for number, path in enumerate(["train/a.jpg", "train/deep/B.JPG", "train/c.jpg", "val/d.jpg"]):
        write_jpeg(tmp_path / path, number)
    write_text(tmp_path / "classes.txt", "cat\ndog\tpuppy\n")
    return tmp_path


def labels_of(data: Any, split: str) -> dict[str, list[int]]:  # noqa: ANN401
    part = data.splits[split]
    return dict(zip(part.ids, part.labels.tolist(), strict=True))


def problems_of(data: Any) -> set[tuple[str, str, str]]:  # noqa: ANN401
    return {(item.kind, item.split, item.where) for item in data.problems}


def test_without_labels_all_are_unknown(root: Path) -> None:
    data = folder.read(params(root))
    assert data.problems == []
    assert labels_of(data, "train") == {"train/a.jpg": [-1, -1], "train/c.jpg": [-1, -1], "train/deep/B.JPG": [-1, -1]}
    assert data.splits["val"].paths == ["val/d.jpg"]
    assert [(item.name, item.prompt) for item in data.classes] == [("cat", "cat"), ("dog", "puppy")]
    assert data.notes == {"other_files": 1, "images_outside_splits": 0, "images_without_labels": 4}


def test_labels_in_columns(root: Path) -> None:
    write_text(
        root / "labels.csv", "\ufeffpath,dog,cat\r\ntrain/a.jpg,1,0\r\n./train/c.jpg,,-1\r\n\r\nval/d.jpg, 0 ,1\r\n"
    )
    data = folder.read(params(root))
    assert data.problems == []
    assert labels_of(data, "train") == {"train/a.jpg": [0, 1], "train/c.jpg": [-1, -1], "train/deep/B.JPG": [-1, -1]}
    assert labels_of(data, "val") == {"val/d.jpg": [1, 0]}
    assert data.notes["images_without_labels"] == 1


def test_a_class_without_a_column_stays_unknown(root: Path) -> None:
    write_text(root / "labels.csv", "path,dog\ntrain/a.jpg,1\n")
    assert labels_of(folder.read(params(root)), "train")["train/a.jpg"] == [-1, 1]


def test_labels_by_name(root: Path) -> None:
    write_text(root / "labels.csv", "path,labels\ntrain/a.jpg,dog; cat\ntrain/c.jpg,\nval/d.jpg,cat;\n")
    data = folder.read(params(root))
    assert labels_of(data, "train") == {"train/a.jpg": [1, 1], "train/c.jpg": [0, 0], "train/deep/B.JPG": [-1, -1]}
    assert labels_of(data, "val") == {"val/d.jpg": [1, 0]}


def test_a_class_may_be_called_labels(root: Path) -> None:
    write_text(root / "classes.txt", "labels\n")
    write_text(root / "labels.csv", "path,labels\nval/d.jpg,1\n")
    assert labels_of(folder.read(params(root)), "val") == {"val/d.jpg": [1]}


def test_rows_that_cannot_be_used_leave_their_image_out(root: Path) -> None:
    write_jpeg(root.parent / "secret.jpg")
    rows = [
        "train/a.jpg,maybe,0",
        "train/c.jpg,1",
        "val/d.jpg,1,0",
        "val/d.jpg,0,0",
        "val/gone.jpg,1,0",
        "../secret.jpg,1,0",
        "classes.txt,1,0",
    ]
    write_text(root / "labels.csv", "path,cat,dog\n" + "\n".join(rows))
    data = folder.read(params(root))
    assert problems_of(data) == {
        ("broken_annotation", "train", "train/a.jpg"),
        ("broken_annotation", "train", "train/c.jpg"),
        ("duplicate_id", "val", "val/d.jpg"),
        ("missing_image", "val", "val/gone.jpg"),
        ("outside_root", "train", "../secret.jpg"),
        ("missing_image", "train", "classes.txt"),
    }
    assert data.splits["train"].ids == ["train/deep/B.JPG"]
    assert data.splits["val"].ids == []


def test_an_unknown_class_leaves_its_image_out(root: Path) -> None:
    write_text(root / "labels.csv", "path,labels\ntrain/a.jpg,cat;dgo\ntrain/c.jpg,cat,dog\n")
    data = folder.read(params(root))
    assert problems_of(data) == {
        ("unknown_class", "train", "train/a.jpg"),
        ("broken_annotation", "train", "train/c.jpg"),
    }
    assert "labels.csv line 2: 'dgo' is not in classes.txt" in str(data.problems[0])


@pytest.mark.parametrize(
    "header", ["", "cat,dog", "path", "path,dgo", "path,cat,cat", "path,cat,labels", "Path,cat", "path;cat"]
)
def test_a_header_that_does_not_fit_is_refused(root: Path, header: str) -> None:
    write_text(root / "labels.csv", f"{header}\ntrain/a.jpg,1\n")
    with pytest.raises(DataError, match=r"labels\.csv: the header .* must be 'path,labels', or 'path' and names"):
        folder.read(params(root))


@pytest.mark.parametrize("text", ['path,cat\n"train/a.jpg"x,1\n', "path,cat\n" + "x" * 200_000, 'path,cat\n"open'])
def test_a_file_that_is_no_csv_is_refused(root: Path, text: str) -> None:
    write_text(root / "labels.csv", text)
    with pytest.raises(DataError, match=r"labels\.csv: line \d+ is not CSV"):
        folder.read(params(root))


CELLS = st.sampled_from(["1", "0", "-1", ""])
FILE_NAMES = (
    st.text(st.characters(exclude_characters="/\0\r", exclude_categories=["Cs"]), min_size=1, max_size=8)
    .map(lambda name: f"i{name}.png")
    .filter(lambda name: "\\.." not in name and "..\\" not in name)
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(FILE_NAMES, st.tuples(CELLS, CELLS), min_size=1, max_size=4))
def test_labels_round_trip_with_any_file_name(rows: dict[str, tuple[str, str]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([("path", "dog", "cat"), *[(f"train/{name}", *cells) for name, cells in rows.items()]])
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_text(root / "classes.txt", "cat\ndog")
        write_text(root / "labels.csv", stream.getvalue())
        for path in [*[f"train/{name}" for name in rows], "val/v.png"]:
            write_text(root / path, "never opened")
        data = folder.read(params(root))
    assert data.problems == []
    assert labels_of(data, "train") == {
        f"train/{name}": [int(cat or -1), int(dog or -1)] for name, (dog, cat) in rows.items()
    }


class TestHeldOutByHash:
    """One folder of images without splits."""

    def read(self, root: Path, paths: list[str], **changes: Any) -> Any:  # noqa: ANN401
        write_text(root / "classes.txt", "cat")
        for path in paths:
            write_text(root / path, "never opened")
        return folder.read(params(root, **changes))

    def test_an_image_keeps_its_side_when_others_are_added(self, tmp_path: Path) -> None:
        first = self.read(tmp_path, [f"{n}.jpg" for n in range(50)])
        more = self.read(tmp_path, [f"more/{n}.png" for n in range(150)])
        for split in ("train", "val"):
            assert set(first.splits[split].ids) <= set(more.splits[split].ids)
        assert len(more.splits["train"].ids) + len(more.splits["val"].ids) == 200

    @pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
    def test_the_share_is_about_what_was_asked(self, tmp_path: Path, fraction: float) -> None:
        data = self.read(tmp_path, [f"{n}.jpg" for n in range(400)], val_fraction=fraction)
        assert abs(len(data.splits["val"].ids) / 400 - fraction) < 0.08

    @pytest.mark.parametrize("fraction", [1e-9, 0.999999])
    @pytest.mark.parametrize("count", [2, 3, 7])
    def test_neither_side_is_empty(self, tmp_path: Path, fraction: float, count: int) -> None:
        data = self.read(tmp_path, [f"{n}.jpg" for n in range(count)], val_fraction=fraction)
        assert min(len(part.ids) for part in data.splits.values()) == 1
        assert sum(len(part.ids) for part in data.splits.values()) == count

    def test_a_lone_image_is_not_held_out(self, tmp_path: Path) -> None:
        for fraction in (0.01, 0.99):
            data = self.read(tmp_path, ["a.jpg"], val_fraction=fraction)
            assert data.splits["train"].ids == ["a.jpg"]
            assert data.splits["val"].ids == []

    def test_one_folder_of_the_two_is_no_split(self, tmp_path: Path) -> None:
        data = self.read(tmp_path, ["train/a.jpg", "train/b.jpg", "c.jpg"])
        assert sum(len(part.ids) for part in data.splits.values()) == 3
        assert data.splits["val"].ids != []

    def test_no_share_and_no_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ParamsError, match=r"dataset\.val_fraction: 0 leaves no evaluation split"):
            self.read(tmp_path, ["a.jpg", "b.jpg"], val_fraction=0.0)


def test_split_folders_have_the_names_of_the_parameters(root: Path) -> None:
    (root / "val").rename(root / "holdout")
    data = folder.read(params(root, val="holdout", val_fraction=0.0))
    assert data.splits["val"].ids == ["holdout/d.jpg"]


def test_what_is_no_image_of_a_split_is_counted_or_passed_over(root: Path) -> None:
    write_text(root / "train" / "notes.md", "text")
    write_jpeg(root / "train" / ".hidden.jpg")
    write_jpeg(root / "train" / ".cache" / "e.jpg")
    write_jpeg(root / "training" / "f.jpg")
    write_jpeg(root / "train" / "folder.jpg" / "g.jpg")
    data = folder.read(params(root))
    assert data.problems == []
    assert data.splits["train"].ids == ["train/a.jpg", "train/c.jpg", "train/deep/B.JPG", "train/folder.jpg/g.jpg"]
    assert data.notes["other_files"] == 2
    assert data.notes["images_outside_splits"] == 1


def test_links_that_lead_out_are_problems(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (root / "train" / "link.jpg").symlink_to(write_jpeg(outside / "x.jpg"))
    (root / "val" / "link").symlink_to(outside)
    (root / "val" / "loop.jpg").symlink_to(root / "val" / "loop.jpg")
    (root / "val" / "inside.jpg").symlink_to(root / "val" / "d.jpg")
    os.mkfifo(root / "val" / "pipe.jpg")
    data = folder.read(params(root))
    assert problems_of(data) == {
        ("outside_root", "train", "train/link.jpg"),
        ("outside_root", "val", "val/link"),
        ("missing_image", "val", "val/loop.jpg"),
        ("missing_image", "val", "val/pipe.jpg"),
    }
    assert data.splits["val"].ids == ["val/d.jpg", "val/inside.jpg"]


def test_a_name_that_is_not_utf8_is_a_problem(root: Path) -> None:
    (root / "train" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    data = folder.read(params(root))
    assert [(item.kind, item.where) for item in data.problems] == [("bad_name", "train/caf\\udce9.jpg")]


def test_names_that_differ_in_case_alone_are_two_images(root: Path) -> None:
    if (root / "train" / "A.jpg").exists():
        pytest.skip("the file system does not tell case apart")
    write_jpeg(root / "train" / "A.jpg")
    assert {"train/A.jpg", "train/a.jpg"} <= set(folder.read(params(root)).splits["train"].ids)


def test_nothing_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none cannot be listed .*dataset\.root is a folder with images"):
        folder.read(params(tmp_path / "none"))
    with pytest.raises(DataError, match=r"classes\.txt is missing: write one class name a line"):
        folder.read(params(tmp_path))
    write_text(tmp_path / "classes.txt", "cat")
    with pytest.raises(DataError, match=r"holds no images \(\.bmp, .*\): put them there"):
        folder.read(params(tmp_path))
