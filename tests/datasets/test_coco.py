"""The COCO reader."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_layouts import write_coco, write_jpeg, write_text

from clipdistill.datasets import coco
from clipdistill.errors import DataError, ParamsError
from clipdistill.params import DatasetParams

CATEGORIES = {1: "person", 90: "toothbrush", 13: "stop sign"}


def params(root: Path, **changes: Any) -> DatasetParams:  # noqa: ANN401
    return DatasetParams(
        **{"name": "mini", "reader": "coco", "root": str(root), "train": "train2014", "val": "val2014"} | changes
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_coco(tmp_path, "train2014", {9: [1, 1, 90], 100012: [13], 30: []}, CATEGORIES)
    write_coco(tmp_path, "val2014", {42: [90]}, CATEGORIES)
    return tmp_path


def change(root: Path, name: str, edit: Any) -> None:  # noqa: ANN401
    path = root / "annotations" / f"instances_{name}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_columns_are_ranks_of_category_ids(root: Path) -> None:
    data = coco.read(params(root))
    assert data.problems == []
    assert [(item.name, item.prompt) for item in data.classes] == [
        ("person", "person"),
        ("stop sign", "stop sign"),
        ("toothbrush", "toothbrush"),
    ]
    train = data.splits["train"]
    assert train.ids == ["000000000009", "000000100012"]
    assert train.paths[1] == "train2014/train2014_000000100012.jpg"
    assert train.labels.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert train.labels.dtype == np.int8
    assert data.splits["val"].labels.tolist() == [[0, 0, 1]]
    assert all((data.image_root / path).is_file() for path in train.paths)


def test_crowd_regions_count(root: Path) -> None:
    change(root, "val2014", lambda content: content["annotations"][0].update(iscrowd=1))
    assert coco.read(params(root)).splits["val"].labels.tolist() == [[0, 0, 1]]


def test_images_without_objects_are_dropped_or_kept_and_counted(root: Path) -> None:
    dropped, kept = coco.read(params(root)), coco.read(params(root, empty_images="keep"))
    assert dropped.notes["images_without_objects"] == {"train": 1, "val": 0}
    assert dropped.notes["images_without_objects_are"] == "dropped"
    assert kept.notes["images_without_objects"] == {"train": 1, "val": 0}
    assert kept.notes["images_without_objects_are"] == "kept"
    assert kept.splits["train"].labels[kept.splits["train"].ids.index("000000000030")].tolist() == [0, 0, 0]
    assert len(dropped.splits["train"].ids) == 2


IMAGES = st.dictionaries(
    st.integers(0, 2**40), st.lists(st.sampled_from(sorted(CATEGORIES)), max_size=4), min_size=1, max_size=6
)


@settings(max_examples=20, deadline=None)
@given(IMAGES)
def test_labels_agree_with_the_rule_written_out(
    tmp_path_factory: pytest.TempPathFactory, images: dict[int, list[int]]
) -> None:
    root = tmp_path_factory.mktemp("coco")
    write_coco(root, "train2014", images, CATEGORIES)
    write_coco(root, "val2014", {2**41: [1]}, CATEGORIES)
    train = coco.read(params(root, empty_images="keep")).splits["train"]
    assert dict(zip(train.ids, train.labels.tolist(), strict=True)) == {
        f"{image_id:012d}": [int(category in present) for category in sorted(CATEGORIES)]
        for image_id, present in images.items()
    }


def test_the_images_may_lie_elsewhere(root: Path, tmp_path: Path) -> None:
    (root / "pictures").mkdir()
    for name in ("train2014", "val2014"):
        (root / name).rename(root / "pictures" / name)
    data = coco.read(params(root, images=str(root / "pictures")))
    assert data.image_root == root / "pictures"
    assert data.problems == []


@pytest.mark.parametrize("name", ["../secret.jpg", "/secret.jpg", "file:///secret.jpg"])
def test_a_file_name_that_leaves_the_folder_is_never_opened(root: Path, name: str) -> None:
    write_jpeg(root / "secret.jpg")
    change(root, "train2014", lambda content: content["images"][0].update(file_name=name))
    data = coco.read(params(root))
    assert [(item.kind, item.where) for item in data.problems] == [("outside_root", "000000000009")]
    assert data.splits["train"].ids == ["000000100012"]


def test_a_missing_image_is_a_problem(root: Path) -> None:
    (root / "val2014" / "val2014_000000000042.jpg").unlink()
    data = coco.read(params(root))
    assert [(item.kind, item.split, item.where) for item in data.problems] == [("missing_image", "val", "000000000042")]


def test_a_category_that_is_not_listed_leaves_the_image_out(root: Path) -> None:
    change(root, "train2014", lambda content: content["annotations"][1].update(category_id=2))
    data = coco.read(params(root))
    assert data.splits["train"].ids == ["000000100012"]
    assert data.problems[0].kind == "unknown_class"
    assert "category 2" in data.problems[0].detail


def test_an_image_twice_is_a_problem_whether_or_not_it_has_objects(root: Path) -> None:
    change(root, "train2014", lambda content: content["images"].append(dict(content["images"][0])))
    data = coco.read(params(root))
    assert [(item.kind, item.where) for item in data.problems] == [("duplicate_id", "000000000009")]
    assert data.splits["train"].labels.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_the_same_image_in_two_releases_is_a_leak(root: Path) -> None:
    write_coco(root, "val2017", {9: [1]}, CATEGORIES)
    data = coco.read(params(root, val="val2017"))
    assert [(item.kind, item.split, item.where) for item in data.problems] == [
        ("duplicate_id", "train", "000000000009")
    ]
    assert data.splits["val"].ids == ["000000000009"]


def test_annotations_of_images_that_are_not_listed_are_counted(root: Path) -> None:
    change(root, "train2014", lambda content: content["annotations"].append({"image_id": 5, "category_id": 1}))
    assert coco.read(params(root)).notes["annotations_of_unlisted_images"] == {"train": 1, "val": 0}


def test_a_split_without_images_is_read_as_empty(root: Path) -> None:
    change(root, "val2014", lambda content: content.update(images=[]))
    assert coco.read(params(root)).splits["val"].labels.shape == (0, 3)


def test_other_categories_in_the_other_split_are_refused(root: Path) -> None:
    change(root, "val2014", lambda content: content["categories"].pop())
    with pytest.raises(DataError, match="have different categories"):
        coco.read(params(root))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("images"), "has no 'images'"),
        (lambda content: content["annotations"][0].pop("category_id"), "has no 'category_id'"),
        (lambda content: content["annotations"][0].update(category_id=1.5), "where an integer id should be"),
        (lambda content: content["annotations"][0].update(image_id="9"), "where an integer id should be"),
        (lambda content: content["annotations"][0].update(image_id=[9]), "not of COCO's form"),
        (lambda content: content["images"][0].update(id="9"), "not of COCO's form"),
        (lambda content: content["images"][0].update(id=2**70), "not of COCO's form"),
        (lambda content: content["images"][0].update(id=True), "True stands where an integer id should be"),
        (lambda content: content["annotations"][0].update(category_id=math.nan), "nan stands where an integer id"),
        (lambda content: content["images"][0].update(file_name=None), "None stands where a name should be"),
        (lambda content: content["categories"][0].update(name=None), "None stands where a name should be"),
        (lambda content: content.update(categories=[]), "no categories"),
        (lambda content: content["categories"][0].update(name="toothbrush"), "a name twice"),
        (lambda content: content["categories"].append({"id": 1, "name": "man"}), "an id or a name twice"),
        # An object of objects, whose keys would be dropped: nothing would be in any image.
        (lambda content: content.update(annotations={"1": content["annotations"][0]}), "annotations is no list"),
        (lambda content: content.update(images={"1": content["images"][0]}), "images is no list"),
        (lambda content: content.update(categories={}), "categories is no list"),
        (lambda content: [item.update(image_id=777) for item in content["annotations"]], "all of its annotations are"),
    ],
)
def test_another_form_is_refused(root: Path, edit: Any, message: str) -> None:  # noqa: ANN401
    change(root, "train2014", edit)
    with pytest.raises(DataError, match=message):
        coco.read(params(root))


def test_boxes_are_not_read_wherever_they_lie(root: Path) -> None:
    expected = {split: part.labels.tolist() for split, part in coco.read(params(root)).splits.items()}
    for box in ([-5, -5, 1e9, 1e9], [math.nan] * 4, None):
        change(root, "train2014", lambda content, box=box: [a.update(bbox=box) for a in content["annotations"]])
        assert {split: part.labels.tolist() for split, part in coco.read(params(root)).splits.items()} == expected


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\ud800"])
def test_a_category_without_a_name_that_can_be_written_is_refused(root: Path, name: str) -> None:
    for split in ("train2014", "val2014"):
        change(root, split, lambda content: content["categories"][0].update(name=name))
    with pytest.raises(DataError, match=r"class name .* is blank or holds a control character"):
        coco.read(params(root))


def test_a_file_of_gigabytes_is_refused_unread(root: Path) -> None:
    path = root / "annotations" / "instances_val2014.json"
    os.truncate(path, 3 * 2**30)
    with pytest.raises(DataError, match=r"instances_val2014\.json has 3\.0 GiB.*: leave out what labels do not need"):
        coco.read(params(root))


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\ud800"])
def test_a_file_that_is_no_json_is_refused(root: Path, text: str) -> None:
    path = root / "annotations" / "instances_val2014.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"instances_val2014\.json is not"):
        coco.read(params(root))


def test_nothing_there_says_what_to_get(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train2014 is missing: get the instance annotations and the images"):
        coco.read(params(tmp_path / "none"))
    with pytest.raises(DataError, match=r"for example train2014"):
        coco.read(params(root, train="train"))
    (root / "annotations" / "instances_val2014.json").unlink()
    with pytest.raises(DataError, match=r"instances_val2014\.json is missing: get"):
        coco.read(params(root))


def test_a_prompt_name_for_an_unknown_class_is_refused(root: Path) -> None:
    assert coco.read(params(root, prompt_names={"person": "human"})).classes[0].prompt == "human"
    with pytest.raises(ParamsError, match=r"dataset\.prompt_names\.persn"):
        coco.read(params(root, prompt_names={"persn": "human"}))


def test_a_mark_at_the_beginning_does_not_matter(root: Path) -> None:
    path = root / "annotations" / "instances_val2014.json"
    write_text(path, "\ufeff" + path.read_text())
    assert coco.read(params(root)).splits["val"].ids == ["000000000042"]
