"""Open vocabularies: which labels there are, which of them are unseen, and where an image has them."""

from __future__ import annotations

import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_layouts import write_coco, write_nuswide, write_nuswide_tags, write_text, write_voc

from clipdistill.datasets import open_vocabulary
from clipdistill.datasets.prompt_names import COCO_CLASSES, NUSWIDE_CLASSES, VOC_CLASSES
from clipdistill.datasets.raw import RawDataset, RawSplit
from clipdistill.datasets.readers import read_raw
from clipdistill.datasets.table import ClassName
from clipdistill.errors import DataError, ParamsError
from clipdistill.params import DatasetParams


def read(root: Path, reader: str, **settings: Any) -> RawDataset:  # noqa: ANN401
    return read_raw(DatasetParams.model_validate({"name": "mini", "reader": reader, "root": str(root)} | settings))


def named(*names: str) -> list[ClassName]:
    return [ClassName(name, f"the {name}") for name in names]


def names_of(labels: list[ClassName], *, seen: bool) -> list[str]:
    return [item.name for item in labels if item.seen == seen]


def columns(part: RawSplit, names: list[str], data: RawDataset) -> list[list[int]]:
    """Ground truth of some labels of the open vocabulary."""
    labels = open_vocabulary.labels_of(part, data.classes, data.open_classes)
    every = [item.name for item in data.open_classes]
    return labels[:, [every.index(name) for name in names]].tolist()


class TestClasses:
    """The data set's own classes, some of which the parameters name as unseen."""

    def choose(self, *unseen: str) -> list[ClassName]:
        return open_vocabulary.choose(DatasetParams(unseen=list(unseen)), named("a", "b", "c", "d"))

    def test_without_unseen_names_the_labels_are_the_classes(self) -> None:
        assert self.choose() == named("a", "b", "c", "d")

    def test_unseen_ones_come_last_in_the_order_of_the_classes(self) -> None:
        labels = self.choose("c", "a")
        assert [(item.name, item.prompt, item.seen) for item in labels] == [
            ("b", "the b", True), ("d", "the d", True), ("a", "the a", False), ("c", "the c", False)
        ]  # fmt: skip

    def test_an_unknown_name_is_told_with_the_known_ones(self) -> None:
        with pytest.raises(ParamsError, match=r"dataset\.unseen: the data set has no class 'e'; it has a, b, c, d"):
            self.choose("a", "e")

    def test_one_class_at_least_is_seen(self) -> None:
        with pytest.raises(ParamsError, match=r"dataset\.unseen names all classes"):
            self.choose("a", "b", "c", "d")

    @given(st.lists(st.sampled_from("abcdefg"), unique=True, min_size=1), st.data())
    def test_labels_are_columns_of_the_classes(self, names: list[str], data: st.DataObject) -> None:
        unseen = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names) - 1))
        classes = named(*names)
        labels = open_vocabulary.choose(DatasetParams(unseen=unseen), classes)
        truth = np.arange(2 * len(names), dtype=np.int8).reshape(2, -1)
        found = open_vocabulary.labels_of(RawSplit(["x", "y"], ["x", "y"], truth), classes, labels)
        assert sorted(names_of(labels, seen=False)) == sorted(unseen)
        assert [item.seen for item in labels] == sorted((item.seen for item in labels), reverse=True)
        assert {item.name: found[:, column].tolist() for column, item in enumerate(labels)} == {
            name: truth[:, column].tolist() for column, name in enumerate(names)
        }


class TestSplitsOfTheLiterature:
    """Classes that are known by name."""

    def test_coco_has_48_seen_and_17_unseen_of_its_80(self, tmp_path: Path) -> None:
        categories = dict(enumerate(COCO_CLASSES, start=1))
        number = {name: category for category, name in categories.items()}
        write_coco(tmp_path, "train", {1: [number["person"], number["tie"], number["wine glass"]]}, categories)
        write_coco(tmp_path, "val", {2: [number["scissors"]], 3: [number["hair drier"]]}, categories)
        data = read(tmp_path, "coco", open_vocabulary="coco-48-17")
        seen, unseen = names_of(data.open_classes, seen=True), names_of(data.open_classes, seen=False)
        assert (len(seen), len(unseen)) == (48, 17)
        assert [item.name for item in data.open_classes] == seen + unseen
        for part in (seen, unseen):
            assert part == sorted(part, key=COCO_CLASSES.index)
        assert (seen[0], seen[-1], unseen[0], unseen[-1]) == ("person", "toothbrush", "airplane", "scissors")
        assert set(COCO_CLASSES) - {*seen, *unseen} == {
            "traffic light", "fire hydrant", "stop sign", "parking meter", "sports ball", "baseball bat",
            "baseball glove", "tennis racket", "wine glass", "hot dog", "potted plant", "dining table", "cell phone",
            "teddy bear", "hair drier",
        }  # fmt: skip
        assert columns(data.splits["train"], ["person", "bicycle", "airplane", "tie"], data) == [[1, 0, 0, 1]]
        assert columns(data.splits["val"], ["scissors", "person"], data) == [[1, 0], [0, 0]]

    def test_voc_has_5_unseen_of_its_20(self, tmp_path: Path) -> None:
        write_voc(tmp_path, {"train": {"a": [("sofa", False)]}, "val": {"b": [("train", False)]}}, VOC_CLASSES)
        data = read(tmp_path, "voc", open_vocabulary="voc-15-5")
        assert names_of(data.open_classes, seen=False) == ["pottedplant", "sheep", "sofa", "train", "tvmonitor"]
        assert len(names_of(data.open_classes, seen=True)) == 15
        assert data.open_classes[-1] == ClassName("tvmonitor", "tv monitor", seen=False)
        assert columns(data.splits["train"], ["sofa", "train", "cat"], data) == [[1, 0, 0]]

    @pytest.mark.parametrize(
        ("preset", "classes", "message"),
        [
            ("coco-48-17", VOC_CLASSES, r"splits 80 classes by name, and 'aeroplane' is only in the data set"),
            ("coco-48-17", COCO_CLASSES[1:], r".* and 'person' is only in its list"),
            ("voc-15-5", ("cat",), r"splits 20 classes by name, and 'aeroplane' is only in its list"),
        ],
    )
    def test_other_classes_are_refused(self, preset: Any, classes: tuple[str, ...], message: str) -> None:  # noqa: ANN401
        with pytest.raises(ParamsError, match=rf"dataset\.open_vocabulary: {preset} {message}"):
            open_vocabulary.choose(DatasetParams(open_vocabulary=preset), named(*classes))


def coloured(*objects: tuple[str, str, bool]) -> str:
    """An annotation of objects (colour, class, difficult)."""
    parts = [
        f"<object><name>{name}</name><color> {colour} </color><difficult>{int(difficult)}</difficult></object>"
        for colour, name, difficult in objects
    ]
    return f"<annotation>{''.join(parts)}<object><name>cat</name></object></annotation>"


COLOURS = ("red", "blue", "grey")
OBJECTS = st.lists(st.tuples(st.sampled_from(COLOURS), st.sampled_from(["cat", "dog"]), st.booleans()), max_size=4)


class TestAttributes:
    """A label for each colour of each class."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        base = write_voc(tmp_path, {"train": {"t1": [], "t2": []}, "val": {"v1": []}}, ["cat", "dog"])
        write_text(base / "classes.txt", "cat\ndog\thound\n")
        write_text(base / "attributes.txt", "red\nlight blue\n")
        write_text(base / "unseen.txt", "light blue cat\r\nred dog\n")
        write_text(base / "Annotations" / "t1.xml", coloured(("red", "cat", False), ("red", "cat", True)))
        write_text(base / "Annotations" / "t2.xml", coloured(("light blue", "dog", True), ("green", "dog", False)))
        write_text(base / "Annotations" / "v1.xml", coloured(("red", "dog", False), ("light blue", "dog", True)))
        return base

    @pytest.mark.parametrize(("difficult", "value"), [("negative", 0), ("positive", 1), ("ignore", -1)])
    def test_an_image_has_the_label_where_an_object_has_the_colour(
        self, root: Path, difficult: str, value: int
    ) -> None:
        data = read(root, "voc", open_vocabulary="attributes", difficult=difficult)
        assert data.problems == []
        assert [(item.name, item.prompt, item.seen) for item in data.open_classes] == [
            ("red cat", "red cat", True),
            ("light blue dog", "light blue hound", True),
            ("light blue cat", "light blue cat", False),
            ("red dog", "red hound", False),
        ]
        train, val = (data.splits[split].open_labels for split in ("train", "val"))
        assert train is not None
        assert val is not None
        assert train.dtype == np.int8
        # What no list names (green, and an object without a colour) has no label here, but its class has.
        assert train.tolist() == [[1, 0, 0, 0], [0, value, 0, 0]]
        assert val.tolist() == [[0, value, 0, 1]]
        assert data.splits["train"].labels.tolist() == [[1, 0], [1, 1]]

    def test_rows_stay_aligned_where_images_are_left_out(self, root: Path) -> None:
        write_text(root / "Annotations" / "t1.xml", "<annotation")
        data = read(root, "voc", open_vocabulary="attributes", difficult="positive")
        assert data.splits["train"].ids == ["t2"]
        assert columns(data.splits["train"], ["light blue dog", "red cat"], data) == [[1, 0]]

    def test_without_a_class_list_the_files_lie_in_the_release(self, root: Path) -> None:
        (root / "classes.txt").unlink()
        data = read(root, "voc", open_vocabulary="attributes")
        assert len(data.open_classes) == 2 * len(VOC_CLASSES)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("attributes.txt", None, r"attributes\.txt is missing: write one value a line"),
            ("unseen.txt", None, r"unseen\.txt is missing: write one label a line .*'red cat'"),
            ("attributes.txt", "\n", r"attributes\.txt is empty: write one value a line"),
            ("attributes.txt", "red\nblue\nred", r"row 3 is 'red', which gives a second label 'red cat'; rename"),
            ("attributes.txt", "red\nlight\x0bblue", r"holds a control character"),
            ("unseen.txt", "red dog\ngreen dog", r"unseen\.txt: row 2 is 'green dog', which is no label: write"),
            ("unseen.txt", "red cat\nred dog\nlight blue cat\nlight blue dog", r"names all labels; leave at least one"),
        ],
    )
    def test_lists_that_do_not_fit_are_refused(self, root: Path, name: str, text: str | None, message: str) -> None:
        if name == "attributes.txt":
            write_text(root / "unseen.txt", "")
        (root / name).unlink()
        if text is not None:
            write_text(root / name, text)
        with pytest.raises(DataError, match=message):
            read(root, "voc", open_vocabulary="attributes")

    def test_a_value_and_a_class_are_not_mistaken_for_others_of_the_same_text(self, root: Path) -> None:
        write_text(root / "classes.txt", "cat\nblue cat\n")
        write_text(root / "attributes.txt", "light blue\n")
        write_text(root / "unseen.txt", "")
        for image_id in ("t1", "t2", "v1"):
            write_text(root / "Annotations" / f"{image_id}.xml", coloured(("light", "blue cat", False)))
        data = read(root, "voc", open_vocabulary="attributes")
        assert columns(data.splits["val"], ["light blue cat"], data) == [[0]]

    @settings(max_examples=20, deadline=None)
    @given(st.lists(OBJECTS, min_size=1, max_size=3), st.sampled_from(["negative", "positive", "ignore"]))
    def test_labels_follow_the_rule_written_out(self, contents: list[Any], difficult: str) -> None:
        only_difficult = {"negative": 0, "positive": 1, "ignore": -1}[difficult]
        with tempfile.TemporaryDirectory() as folder:
            images: dict[str, Any] = {f"i{number}": [] for number in range(len(contents))}
            base = write_voc(Path(folder), {"train": images, "val": {"v": []}}, ["cat", "dog"])
            write_text(base / "classes.txt", "cat\ndog\n")
            write_text(base / "attributes.txt", "\n".join(COLOURS))
            write_text(base / "unseen.txt", "red dog\n")
            for image_id, objects in zip(images, contents, strict=True):
                write_text(base / "Annotations" / f"{image_id}.xml", coloured(*objects))
            data = read(base, "voc", open_vocabulary="attributes", difficult=difficult)
        found = data.splits["train"].open_labels
        assert found is not None
        for row, objects in enumerate(contents):
            for column, item in enumerate(data.open_classes):
                flags = [hard for colour, name, hard in objects if f"{colour} {name}" == item.name]
                assert found[row, column] == (0 if not flags else only_difficult if all(flags) else 1)


# As in the original: these six concepts are not among the thousand tags, the others stand between them.
NO_TAGS = {"computer", "fire", "map", "swimmers", "tattoo", "whales"}
OTHERS = ["nature", "blue", "red", "green", "bravo", *(f"tag{number}" for number in range(920))]
TAGGED = [name for name in NUSWIDE_CLASSES if name not in NO_TAGS]
TAGS = [tag for pair in zip_longest(OTHERS, TAGGED) for tag in pair if tag]


def concepts(*names: str) -> list[int]:
    return [int(name in names) for name in reversed(NUSWIDE_CLASSES)]


class TestNusWide:
    """925 tags that are seen, and 81 concepts that are not."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        train = {"actor/0002_22.jpg": concepts("sky"), "zoo/0004_44.jpg": concepts("tattoo", "zebra")}
        test = {"actor/0001_11.jpg": concepts(), "sky/0003_33.jpg": concepts("airport", "sky")}
        write_nuswide(tmp_path, train, test, tuple(reversed(NUSWIDE_CLASSES)))
        tags = {
            "actor/0001_11.jpg": ["sky", "tag0", "nature"],
            "actor/0002_22.jpg": ["bravo", "tag919"],
            "sky/0003_33.jpg": ["cat", "zebra"],
            "zoo/0004_44.jpg": ["tag7", "nature", "blue"],
        }
        write_nuswide_tags(tmp_path, TAGS, tags)
        return tmp_path

    def read(self, root: Path) -> RawDataset:
        return read(root, "nuswide", train="Train", val="Test", open_vocabulary="nuswide-925-81")

    def test_tags_that_are_no_concept_are_seen_and_concepts_are_not(self, root: Path) -> None:
        assert len(TAGS) == len(set(TAGS)) == 1000
        data = self.read(root)
        seen, unseen = names_of(data.open_classes, seen=True), names_of(data.open_classes, seen=False)
        assert seen == OTHERS
        assert unseen == list(NUSWIDE_CLASSES) == [item.name for item in data.classes]
        assert [item.name for item in data.open_classes] == seen + unseen
        assert all(data.splits[split].open_labels.shape == (2, 1006) for split in ("train", "val"))

    def test_seen_labels_are_tags_and_unseen_ones_what_people_judged(self, root: Path) -> None:
        data = self.read(root)
        names = ["nature", "blue", "bravo", "tag0", "tag7", "tag919", "airport", "cat", "sky", "tattoo", "zebra"]
        train, val = data.splits["train"], data.splits["val"]
        assert train.ids == ["actor/0002_22", "zoo/0004_44"]
        assert columns(train, names, data) == [[0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 1]]
        assert columns(val, names, data) == [[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0]]
        for part, positives in ((train, [3, 5]), (val, [2, 2])):
            assert part.open_labels is not None
            assert part.open_labels.dtype == np.int8
            assert part.open_labels.sum(axis=1).tolist() == positives
            np.testing.assert_array_equal(part.open_labels[:, 925:], part.labels)

    def test_rows_stay_aligned_where_images_are_left_out(self, root: Path) -> None:
        (root / "Flickr" / "actor" / "0002_22.jpg").unlink()
        data = self.read(root)
        assert data.splits["train"].ids == ["zoo/0004_44"]
        assert columns(data.splits["train"], ["tag7", "bravo", "zebra"], data) == [[1, 0, 1]]

    def test_the_list_of_tags_may_lie_with_that_of_the_concepts(self, root: Path) -> None:
        (root / "NUS_WID_Tags" / "TagList1k.txt").rename(root / "ConceptsList" / "TagList1k.txt")
        assert len(self.read(root).open_classes) == 1006

    def test_the_tags_are_not_read_where_nobody_asks(self, root: Path) -> None:
        (root / "NUS_WID_Tags" / "AllTags1k.txt").unlink()
        data = read(root, "nuswide", train="Train", val="Test")
        assert data.open_classes == data.classes
        assert data.splits["train"].open_labels is None

    @pytest.mark.parametrize("name", ["TagList1k.txt", "AllTags1k.txt"])
    def test_a_missing_file_says_what_to_get_and_where_it_belongs(self, root: Path, name: str) -> None:
        (root / "NUS_WID_Tags" / name).unlink()
        with pytest.raises(DataError, match=rf"{name} is missing: .*NUS_WID_Tags holds .*may lie in ConceptsList") as e:
            self.read(root)
        assert "set dataset.open_vocabulary: classes" in str(e.value)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("0\t" * 999 + "\n", r"line 2 has 999 values, TagList1k\.txt has 1000 tags"),
            ("0\t" * 1001 + "\n", r"line 2 has 1001 values"),
            ("0\t" * 997 + "2\t" * 3 + "\n", r"line 2, value 998 is '2', neither 0 nor 1"),
            ("01\t" + "0\t" * 999 + "\n", r"line 2, value 1 is '01', neither 0 nor 1"),
            ("\xe9" * 40 + "\t0" * 999 + "\n", r"line 2, value 1 is '\\xc3\\xa9.{0,80}', neither 0 nor 1"),
            ("0\t" * 100_000 + "\n", r"line 2 has \d+ values"),
            ("", r"AllTags1k\.txt has 3 lines, ImageList/Imagelist\.txt has 4"),
            (("0\t" * 1000 + "\n") * 2, r"AllTags1k\.txt has 5 lines, ImageList/Imagelist\.txt has 4"),
        ],
    )
    def test_a_table_that_does_not_fit_is_refused(self, root: Path, line: str, message: str) -> None:
        path = root / "NUS_WID_Tags" / "AllTags1k.txt"
        lines = path.read_text().splitlines(keepends=True)
        write_text(path, "".join([lines[0], line, *lines[2:]]))
        with pytest.raises(DataError, match=message) as caught:
            self.read(root)
        assert "AllTags1k.txt" in str(caught.value)
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize("tags", [TAGS[:-1], [*TAGS[:-1], TAGS[0]], [f"tag{number}" for number in range(1000)]])
    def test_another_list_of_tags_is_refused(self, root: Path, tags: list[str]) -> None:
        write_text(root / "NUS_WID_Tags" / "TagList1k.txt", "\n".join(tags))
        with pytest.raises(DataError, match=r"TagList1k\.txt has \d+ tags, .*is 925 tags and 81 concepts; get both"):
            self.read(root)


# Every concept that has a singular or plural twin among the tags that are seen, and this twin.
NUSWIDE_TWINS = {
    "animal": "animals", "bear": "bears", "birds": "bird", "boats": "boat", "bridge": "bridges",
    "buildings": "building", "cars": "car", "cat": "cats", "clouds": "cloud", "cow": "cows", "dog": "dogs",
    "flags": "flag", "flowers": "flower", "garden": "gardens", "horses": "horse", "house": "houses", "lake": "lakes",
    "leaf": "leaves", "map": "maps", "mountain": "mountains", "person": "people", "plants": "plant",
    "reflection": "reflections", "rocks": "rock", "sign": "signs", "sports": "sport", "street": "streets",
    "toy": "toys", "tree": "trees", "valley": "valleys", "waterfall": "waterfalls", "window": "windows",
}  # fmt: skip
# Tags that are near a concept and no twin of it: "wales" is no whale, "shore" no shoe.
NEAR = [
    "wales",
    "seaside",
    "airplane",
    "oceanic",
    "skyline",
    "swimming",
    "trunk",
    "foxy",
    "sunny",
    "surfing",
    "village",
]


def test_the_twins_of_the_concepts_are_found_and_nothing_else() -> None:
    labels = [*named(*NUSWIDE_TWINS.values(), *NEAR), *(ClassName(c, c, seen=False) for c in NUSWIDE_CLASSES)]
    assert open_vocabulary.twins(labels) == set(NUSWIDE_TWINS)
    assert len(NUSWIDE_TWINS) == 32


@pytest.mark.parametrize(
    ("one", "other", "twin"),
    [
        ("car", "cars", True),
        ("red car", "red cars", True),
        ("fox", "foxes", True),
        ("beach", "beaches", True),
        ("city", "cities", True),
        ("leaf", "leaves", True),
        ("knife", "knives", True),
        ("person", "people", True),
        ("car", "care", False),
        ("plan", "planes", False),
        ("red car", "car", False),
        ("sign", "sing", False),
        ("car", "carss", False),
    ],
)
def test_twins_are_found_whichever_of_them_is_seen(one: str, other: str, twin: bool) -> None:
    for seen, unseen in ((one, other), (other, one)):
        labels = [ClassName(seen, seen), ClassName(unseen, unseen, seen=False)]
        assert open_vocabulary.twins(labels) == ({unseen} if twin else set())
    assert open_vocabulary.twins([ClassName(name, name, seen=False) for name in (one, other)]) == set()
