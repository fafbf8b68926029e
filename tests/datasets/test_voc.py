"""The VOC reader: both ways to the labels, the policies for difficult objects, and what it refuses."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_layouts import REAL_VOC, Objects, voc_value, write_jpeg, write_text, write_voc

from clipdistill.datasets import voc
from clipdistill.datasets.prompt_names import VOC_CLASSES
from clipdistill.errors import DataError, ParamsError
from clipdistill.params import DatasetParams

OWN = ("cat", "dog", "fish")
SPLITS: dict[str, dict[str, Objects]] = {
    "train": {"t1": [("cat", False), ("cat", True)], "t2": [("dog", True)], "t3": []},
    "val": {"v1": [("fish", False), ("dog", True), ("dog", True)], "v2": [("cat", True), ("cat", False)]},
}

needs_real = pytest.mark.skipif(not REAL_VOC.is_dir(), reason="the real VOC subset is not here")


def params(root: Path, **changes: Any) -> DatasetParams:  # noqa: ANN401
    return DatasetParams(name="mini", reader="voc", root=str(root), **changes)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_text(tmp_path / "VOCdevkit" / "classes.txt", "cat\ndog\thound\nfish\n")
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", SPLITS, OWN)
    return tmp_path


def main_folder(root: Path) -> Path:
    return root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main"


def annotation(root: Path, image_id: str) -> Path:
    return root / "VOCdevkit" / "VOC2012" / "Annotations" / f"{image_id}.xml"


@pytest.mark.parametrize("annotations", ["xml", "main"])
@pytest.mark.parametrize(
    ("difficult", "train", "val"),
    [
        ("negative", [[1, 0, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]]),
        ("positive", [[1, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, 1, 1], [1, 0, 0]]),
        ("ignore", [[1, 0, 0], [0, -1, 0], [0, 0, 0]], [[0, -1, 1], [1, 0, 0]]),
    ],
)
def test_labels_by_policy(root: Path, annotations: str, difficult: str, train: list[Any], val: list[Any]) -> None:
    data = voc.read(params(root, annotations=annotations, difficult=difficult))
    assert data.problems == []
    assert data.splits["train"].ids == ["t1", "t2", "t3"]
    assert data.splits["train"].paths == ["t1.jpg", "t2.jpg", "t3.jpg"]
    assert data.splits["train"].labels.tolist() == train
    assert data.splits["val"].labels.tolist() == val
    assert data.splits["val"].labels.dtype == np.int8
    assert [(item.name, item.prompt) for item in data.classes] == [("cat", "cat"), ("dog", "hound"), ("fish", "fish")]


OBJECTS = st.lists(st.tuples(st.sampled_from(OWN), st.booleans()), max_size=5)


@settings(max_examples=20, deadline=None)
@given(st.lists(OBJECTS, min_size=1, max_size=5), st.sampled_from(["negative", "positive", "ignore"]))
def test_both_ways_agree_with_the_rule_written_out(contents: list[Objects], difficult: str) -> None:
    becomes = {1: 1, -1: 0, 0: {"negative": 0, "positive": 1, "ignore": -1}[difficult]}
    images = {f"i{number}": objects for number, objects in enumerate(contents)}
    expected = [[becomes[voc_value(objects, name)] for name in OWN] for objects in contents]
    with tempfile.TemporaryDirectory() as folder:
        base = write_voc(Path(folder), {"train": images, "val": {"v": []}}, OWN, images=False)
        write_text(base / "classes.txt", "\n".join(OWN))
        for image_id in [*images, "v"]:
            write_text(base / "JPEGImages" / f"{image_id}.jpg", "never opened")
        for annotations in ("xml", "main"):
            data = voc.read(params(base, annotations=annotations, difficult=difficult))
            assert data.splits["train"].labels.tolist() == expected


@pytest.mark.parametrize("place", ["VOCdevkit/VOC2007", "VOC2007", ""])
def test_the_release_is_found_in_its_three_places(tmp_path: Path, place: str) -> None:
    splits: dict[str, dict[str, Objects]] = {"trainval": {"000005": [("tvmonitor", False)]}, "test": {"000001": []}}
    write_voc(tmp_path / place, splits, VOC_CLASSES)
    data = voc.read(params(tmp_path, year=2007, train="trainval", val="test"))
    assert data.image_root == tmp_path / place / "JPEGImages"
    assert [item.name for item in data.classes] == list(VOC_CLASSES)
    assert data.classes[19].prompt == "tv monitor"
    assert data.splits["train"].labels.tolist() == [[0] * 19 + [1]]
    assert data.splits["val"].ids == ["000001"]


@pytest.mark.parametrize("place", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_own_classes_stand_in_the_release_or_beside_it(tmp_path: Path, place: str) -> None:
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", SPLITS, OWN)
    write_text(tmp_path / place / "classes.txt", "fish\ndog\ncat\n")
    assert [item.name for item in voc.read(params(tmp_path)).classes] == ["fish", "dog", "cat"]


def test_a_class_list_above_the_root_is_not_read(tmp_path: Path) -> None:
    splits: dict[str, dict[str, Objects]] = {"train": {"t": []}, "val": {"v": []}}
    write_voc(tmp_path / "root", splits, VOC_CLASSES)
    write_text(tmp_path / "classes.txt", "cat\n")
    assert len(voc.read(params(tmp_path / "root")).classes) == 20


def test_main_files_may_be_padded_and_end_lines_as_they_like(root: Path) -> None:
    write_text(main_folder(root) / "train.txt", "\ufefft1\r\n t2 \r\nt3")
    write_text(main_folder(root) / "cat_train.txt", "t1   1\r\nt2\t-1\r\nt3  0\r\n")
    data = voc.read(params(root, annotations="main", difficult="positive"))
    assert data.splits["train"].labels[:, 0].tolist() == [1, 0, 1]


def test_a_missing_image_or_annotation_leaves_the_image_out(root: Path) -> None:
    (root / "VOCdevkit" / "VOC2012" / "JPEGImages" / "t1.jpg").unlink()
    annotation(root, "t2").unlink()
    data = voc.read(params(root))
    assert data.splits["train"].ids == ["t3"]
    assert data.splits["train"].labels.tolist() == [[0, 0, 0]]
    assert {(item.kind, item.where) for item in data.problems} == {
        ("missing_image", "t1"),
        ("missing_annotation", "t2"),
    }


def test_an_id_that_a_class_file_lacks_is_a_missing_annotation(root: Path) -> None:
    write_text(main_folder(root) / "dog_train.txt", "t1 1\nt3 -1\n")
    data = voc.read(params(root, annotations="main"))
    assert data.splits["train"].ids == ["t1", "t3"]
    assert [(item.kind, item.where, item.detail) for item in data.problems] == [
        ("missing_annotation", "t2", "not in dog_train.txt")
    ]


def test_an_unknown_class_leaves_the_image_out(root: Path) -> None:
    write_text(annotation(root, "t2"), "<annotation><object><name>unicorn</name></object></annotation>")
    data = voc.read(params(root))
    assert data.splits["train"].ids == ["t1", "t3"]
    assert data.problems[0].kind == "unknown_class"
    assert "'unicorn'" in data.problems[0].detail


BOMB = (
    '<!DOCTYPE annotation [<!ENTITY a "cat"><!ENTITY b "&a;&a;&a;">]>'
    "<annotation><object><name>&b;</name></object></annotation>"
)
EXTERNAL = (
    '<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
    "<annotation><object><name>&a;</name></object></annotation>"
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        EXTERNAL,
        "",
        "<annotation><object>",
        "<annotation><object><name> </name></object></annotation>",
        "<annotation><object><name>cat</name><difficult>maybe</difficult></object></annotation>",
        '<?xml version="1.0" encoding="no-such"?><annotation/>',
    ],
)
def test_broken_xml_is_a_problem_and_never_expands(root: Path, text: str) -> None:
    write_text(annotation(root, "t2"), text)
    data = voc.read(params(root))
    assert data.splits["train"].ids == ["t1", "t3"]
    assert [(item.kind, item.where) for item in data.problems] == [("broken_annotation", "t2")]


def test_objects_without_box_count_and_parts_do_not(root: Path) -> None:
    part = "<object><name>cat</name><part><name>head</name></part></object>"
    write_text(annotation(root, "t3"), f"<annotation>{part}</annotation>")
    assert voc.read(params(root)).splits["train"].labels[2].tolist() == [1, 0, 0]


@pytest.mark.parametrize("image_id", ["../../secret", "/secret", "file:///secret"])
def test_an_id_that_leaves_the_folder_is_never_opened(root: Path, image_id: str) -> None:
    write_jpeg(root / "VOCdevkit" / "secret.jpg")
    write_text(root / "VOCdevkit" / "secret.xml", "<annotation/>")
    write_text(main_folder(root) / "train.txt", f"t1\n{image_id}\n")
    data = voc.read(params(root))
    assert data.splits["train"].ids == ["t1"]
    assert [(item.kind, item.where) for item in data.problems] == [("outside_root", image_id)]


def test_an_annotation_that_links_outside_is_never_opened(root: Path) -> None:
    secret = write_text(root / "secret.xml", "<annotation><object><name>cat</name></object></annotation>")
    annotation(root, "t3").unlink()
    annotation(root, "t3").symlink_to(secret)
    data = voc.read(params(root))
    assert [(item.kind, item.where) for item in data.problems] == [("outside_root", "t3")]


def test_a_class_name_cannot_leave_the_folder(root: Path) -> None:
    write_text(root / "VOCdevkit" / "classes.txt", "../../../secret\n")
    write_text(root / "VOCdevkit" / "secret_train.txt", "t1 1\n")
    with pytest.raises(DataError, match=r"not one below"):
        voc.read(params(root, annotations="main"))


def test_an_id_twice_and_an_id_in_both_splits(root: Path) -> None:
    write_text(main_folder(root) / "train.txt", "t1\nt1\nv1\n")
    data = voc.read(params(root))
    assert data.splits["train"].ids == ["t1"]
    assert data.splits["val"].ids == ["v1", "v2"]
    assert [(item.kind, item.split, item.where) for item in data.problems] == [
        ("duplicate_id", "train", "t1"),
        ("duplicate_id", "train", "v1"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.txt", "t1 1\n", "is not one image id"),
        ("cat_train.txt", "t1 2\n", "not an image id and one of"),
        ("cat_train.txt", "t1\n", "not an image id and one of"),
        ("cat_train.txt", "t1 1\nt1 -1\n", "stands twice with different values"),
    ],
)
def test_a_list_that_means_nothing_is_refused(root: Path, name: str, text: str, message: str) -> None:
    write_text(main_folder(root) / name, text)
    with pytest.raises(DataError, match=message):
        voc.read(params(root, annotations="main"))


def test_a_class_without_its_list_is_named(root: Path) -> None:
    (main_folder(root) / "dog_val.txt").unlink()
    with pytest.raises(DataError, match=r"class 'dog': .*dog_val\.txt"):
        voc.read(params(root, annotations="main"))


def test_nothing_there_says_what_to_get(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"VOCtrainval_06-Nov-2007\.tar and VOCtest_06-Nov-2007\.tar"):
        voc.read(params(tmp_path / "none", year=2007))


def test_half_a_release_says_what_to_get(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007", {"trainval": {"000005": []}}, VOC_CLASSES)
    with pytest.raises(DataError, match=r"test\.txt is missing: .*VOCtest_06-Nov-2007\.tar"):
        voc.read(params(tmp_path, year=2007, train="trainval", val="test"))


def test_another_year_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"dataset\.year: .* 2007 and 2012, found 2010"):
        voc.read(params(tmp_path, year=2010))


@needs_real
class TestRealPhotographs:
    """110 photographs of VOC 2012; the counts are those of the folder's own description."""

    def test_size_and_labels(self) -> None:
        for way in ("xml", "main"):
            for difficult, count in (("negative", 160), ("ignore", 160), ("positive", 175)):
                data = voc.read(params(REAL_VOC, annotations=way, difficult=difficult))
                assert data.problems == []
                labels = [data.splits["train"].labels, data.splits["val"].labels]
                assert [len(part) for part in labels] == [70, 40]
                assert (np.concatenate(labels) == 1).sum() == count

    def test_both_ways_give_the_same_labels(self) -> None:
        for difficult in ("negative", "positive", "ignore"):
            one = voc.read(params(REAL_VOC, annotations="xml", difficult=difficult))
            other = voc.read(params(REAL_VOC, annotations="main", difficult=difficult))
            for split in ("train", "val"):
                assert one.splits[split].ids == other.splits[split].ids
                np.testing.assert_array_equal(one.splits[split].labels, other.splits[split].labels)

    @pytest.mark.parametrize(
        ("difficult", "expected"),
        [
            ("negative", [9, 7, 4, 7, 9, 5, 4, 12, 8, 6, 4, 6, 6, 3, 39, 6, 4, 8, 5, 8]),
            ("positive", [10, 8, 4, 7, 9, 5, 6, 12, 10, 6, 7, 6, 7, 3, 42, 6, 4, 10, 5, 8]),
        ],
    )
    def test_positives_per_class(self, difficult: str, expected: list[int]) -> None:
        data = voc.read(params(REAL_VOC, difficult=difficult))
        labels = np.concatenate([part.labels for part in data.splits.values()])
        assert (labels == 1).sum(axis=0).tolist() == expected
