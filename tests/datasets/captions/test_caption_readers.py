"""The readers of captions: what each layout says, and what of it is a problem."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from caption_layouts import (
    by_id,
    header,
    left,
    params,
    png,
    write_bytes,
    write_coco_captions,
    write_csv,
    write_images,
    write_mask,
    write_parquet,
    write_shard,
)

from clipdistill.datasets.captions.collect import collect
from clipdistill.datasets.captions.named import Names, read_synonyms
from clipdistill.datasets.prompt_names import COCO_CLASSES
from clipdistill.errors import DataError, ParamsError


def kinds(report: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = report["left_out"]
    return found


class TestTable:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write_images(tmp_path / "root", ["a.png", "deep/b.png"])
        write_bytes(tmp_path / "secret.png", png())
        return tmp_path / "root"

    def test_csv_and_parquet_say_the_same(self, root: Path) -> None:
        rows = [{"path": "a.png", "caption": 'A dog, "Rex"\non grass'}, {"path": "deep/b.png", "caption": "\u00fc"}]
        write_csv(root / "train.csv", rows)
        write_parquet(root / "train.parquet", rows)
        tables = [left(root, train=name)[0] for name in ("train.csv", "train.parquet")]
        assert tables[0].fingerprint == tables[1].fingerprint
        assert by_id(tables[0]) == {"a.png": 'A dog, "Rex"\non grass', "deep/b.png": "\u00fc"}
        assert tables[0].tags == [["dog", "rex", "grass"], ["\u00fc"]]
        assert tables[0].truth is None
        assert tables[0].offsets.tolist() == [0, 0]

    def test_marks_line_ends_spaces_in_the_header_and_other_columns_do_not_matter(self, root: Path) -> None:
        text = "\ufeffurl, image ,caption\r\nx,a.png,a dog\r\n\r\ny,deep/b.png,a cat\r\n"
        write_bytes(root / "train.csv", text.encode())
        assert by_id(left(root)[0]) == {"a.png": "a dog", "deep/b.png": "a cat"}

    def test_path_goes_before_image(self, root: Path) -> None:
        write_csv(root / "train.csv", [{"image": "no", "path": "a.png", "caption": "a dog"}])
        assert left(root)[0].paths == ["a.png"]

    def test_captions_of_one_image_are_numbered_where_there_are_no_ids(self, root: Path) -> None:
        write_csv(root / "train.csv", [{"path": "a.png", "caption": text} for text in ("one", " ", "three")])
        table, report = left(root)
        assert by_id(table) == {"a.png": "one", "a.png-3": "three"}
        assert kinds(report) == {"empty_caption": 1}
        assert report["images"] == 1

    def test_ids_may_be_numbers_and_each_counts_once(self, root: Path) -> None:
        rows = [{"id": number, "path": "a.png", "caption": "a dog"} for number in (7, 8, 7)]
        write_parquet(root / "train.parquet", rows)
        table, report = left(root, train="train.parquet")
        assert table.ids == ["7", "8"]
        assert kinds(report) == {"duplicate_id": 1}
        assert "7: listed more than once (a.png)" in report["left_out_pairs"]

    def test_images_may_lie_elsewhere(self, root: Path, tmp_path: Path) -> None:
        write_csv(tmp_path / "lists" / "train.csv", [{"path": "deep/b.png", "caption": "a dog"}])
        table, _ = left(tmp_path / "lists", images=str(root))
        assert (table.root, table.paths) == (root, ["deep/b.png"])

    def test_true_words_are_those_of_the_candidates(self, root: Path) -> None:
        rows = [
            {"path": "a.png", "caption": "A black Dog on the hot sand", "tags": "dog|hot sand| Bone |the"},
            {"path": "deep/b.png", "caption": "a cat", "tags": ""},
        ]
        write_csv(root / "train.csv", rows)
        write_parquet(root / "train.parquet", [row | {"tags": row["tags"].split("|")} for row in rows])
        for name in ("train.csv", "train.parquet"):
            table, report = left(root, train=name)
            assert table.truth == [["dog", "hot", "sand"], []]
            assert report["captions_with_truth"] == 2
            assert report["true_words_per_caption"] == 1.5
            assert report["true_words_that_are_no_candidates"] == 2

    def test_masks_are_checked_with_their_images(self, root: Path) -> None:
        write_mask(root / "good.png", [[1] * 6] * 4)
        write_mask(root / "small.png", [[1]])
        (root / "link.png").symlink_to(root.parent / "secret.png")
        masks = ["good.png", "", "small.png", "none.png", "../secret.png", "link.png"]
        write_csv(
            root / "train.csv",
            [{"id": str(row), "path": "a.png", "caption": "a dog", "mask": mask} for row, mask in enumerate(masks)],
        )
        table, report = left(root)
        assert (table.ids, table.masks) == (["0", "1"], ["good.png", ""])
        assert [mask != "" for mask in table.mask_hashes] == [True, False]
        assert table.open_mask(0).all()
        assert kinds(report) == {"broken_mask": 1, "missing_mask": 1, "outside_root": 2}
        assert report["captions_with_mask"] == 1

    @pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "file:///a.png", "link.png", "folder/secret.png"])
    def test_paths_that_leave_the_root_are_never_opened(self, root: Path, name: str) -> None:
        (root / "link.png").symlink_to(root.parent / "secret.png")
        (root / "folder").symlink_to(root.parent)
        write_csv(root / "train.csv", [{"path": "a.png", "caption": "x"}, {"path": name, "caption": "a dog"}])
        table, report = left(root)
        assert table.paths == ["a.png"]
        assert kinds(report) == {"outside_root": 1}

    def test_rows_that_cannot_be_used_are_left_out_with_their_reasons(self, root: Path) -> None:
        good = {"path": "a.png", "caption": "a dog", "tags": ["dog"], "mask": None}
        changes: list[dict[str, Any]] = [
            {"caption": None}, {"caption": ""}, {"caption": "NaN"}, {"caption": "of the"}, {"caption": "12 34"},
            {"caption": "None"}, {"caption": "n/a"}, {"caption": "NULL "},
            {"caption": "word " * 3000}, {"path": None}, {"path": ""}, {"path": "none.png"}, {"tags": None},
            {"tags": [None]}, {},
        ]  # fmt: skip
        write_parquet(root / "train.parquet", [good | change for change in changes])
        table, report = left(root, train="train.parquet")
        assert by_id(table) == {"a.png-9": "a dog"} or len(table) == 1
        assert kinds(report) == {
            "broken_annotation": 5, "empty_caption": 6, "missing_image": 1, "no_candidates": 2
        }  # fmt: skip
        assert "train.parquet row 0: there is no caption" in report["left_out_pairs"]

    @pytest.mark.parametrize("values", [[float("nan"), float("nan")], [1, 2], [["a"], ["b"]]])
    def test_columns_that_hold_no_text(self, root: Path, values: list[Any]) -> None:
        write_parquet(root / "train.parquet", [{"path": "a.png", "caption": value} for value in values])
        with pytest.raises(DataError, match=r"2 (empty_caption|broken_annotation)"):
            left(root, train="train.parquet")

    def test_rows_of_another_width_are_problems_with_their_line(self, root: Path) -> None:
        write_bytes(root / "train.csv", b"path,caption\na.png,a dog\nb.png\na.png,a,b\n")
        table, report = left(root)
        assert len(table) == 1
        assert report["left_out_pairs"] == [
            "train.csv line 3: 1 cells, the header has 2", "train.csv line 4: 3 cells, the header has 2"
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"has no column 'path' and no 'caption'|has no column path and no caption; it has none at all"),
            (b"file,text\n", r"has no column path and no caption; it has 'file', 'text'"),
            (b"image,text\n", r"has no column caption; it has 'image', 'text'"),
            (b"path,caption,caption\n", r"more than one column 'caption'"),
            (b'path,caption\n"a', r"line 2 is not CSV"),
            (b"path,caption\n\xff,a\n", r"is not UTF-8 text"),
            (b"path,caption\na.png," + b"x" * 200_000, r"is not CSV \(field larger"),
            (b"path,caption\n", r"1 empty_split"),
        ],
    )
    def test_what_is_no_table_is_refused(self, root: Path, content: bytes, message: str) -> None:
        write_bytes(root / "train.csv", content)
        with pytest.raises(DataError, match=message):
            left(root)

    def test_what_is_no_parquet_is_refused(self, root: Path) -> None:
        write_bytes(root / "train.parquet", b"PAR1" * 9)
        with pytest.raises(DataError, match=r"train\.parquet cannot be read as Parquet"):
            left(root, train="train.parquet")
        write_parquet(root / "train.parquet", [{"path": "a.png", "text": "a dog"}])
        with pytest.raises(DataError, match=r"has no column caption; it has 'path', 'text'"):
            left(root, train="train.parquet")

    def test_a_missing_table_and_an_unknown_suffix_are_named_with_the_parameter(self, root: Path) -> None:
        for name in ("none.csv", "none.parquet"):
            with pytest.raises(DataError, match=rf"{name} is missing: ttd\.captions\.train names a table below"):
                left(root, train=name)
        with pytest.raises(ParamsError, match=r"ttd\.captions\.val: 'val\.tsv' is the name of neither"):
            collect(params(root, val="val.tsv"), "val")


class TestCoco:
    CATEGORIES = {1: "person", 18: "dog", 58: "hot dog"}  # noqa: RUF012

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        captions = {9: ["Two women eat hot dogs", "A man's dog."], 100012: ["a hot dog", 3, None, " "], 30: []}
        write_coco_captions(tmp_path, "train2017", captions, {9: [1, 58], 100012: [18, 18]}, self.CATEGORIES)
        return tmp_path

    def test_every_caption_is_a_pair_and_its_words_are_true_where_they_name_what_is_there(self, root: Path) -> None:
        table, report = left(root, reader="coco", train="train2017")
        assert by_id(table) == {
            "000000000009-1": "Two women eat hot dogs",
            "000000000009-2": "A man's dog.",
            "000000100012-1": "a hot dog",
        }
        assert table.paths[2] == "train2017/000000100012.png"
        assert table.truth == [["women", "hot", "dogs"], ["man's"], []]
        assert kinds(report) == {"broken_annotation": 1, "empty_caption": 2}
        assert report["notes"] == {
            "images_without_captions": 1, "captions_of_unlisted_images": 0, "annotations_of_unlisted_images": 0
        }  # fmt: skip
        assert report["images"] == 2

    def test_without_instances_no_truth_is_known(self, root: Path) -> None:
        (root / "annotations" / "instances_train2017.json").unlink()
        table, report = left(root, reader="coco", train="train2017")
        assert table.truth is None
        assert (report["captions_with_truth"], report["true_words_per_caption"]) == (0, None)

    def test_images_whose_objects_are_not_all_known_are_left_out(self, root: Path) -> None:
        path = root / "annotations" / "instances_train2017.json"
        content = json.loads(path.read_text())
        content["annotations"].append({"image_id": 9, "category_id": 5})
        content["images"] = [image for image in content["images"] if image["id"] != 100012]
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"1 missing_annotation(?s:.*)1 unknown_class"):
            collect(params(root, reader="coco", train="train2017"), "train")

    def test_images_may_lie_elsewhere_and_never_outside(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "pictures").mkdir()
        (root / "train2017").rename(tmp_path / "pictures" / "train2017")
        write_bytes(tmp_path / "pictures" / "secret.png", png())
        path = root / "annotations" / "captions_train2017.json"
        path.write_text(path.read_text().replace("000000100012.png", "../secret.png"))
        table, report = left(root, reader="coco", train="train2017", images=str(tmp_path / "pictures"))
        assert set(table.paths) == {"train2017/000000000009.png"}
        assert kinds(report) == {"outside_root": 1}

    def test_captions_of_images_that_are_not_listed_are_counted(self, root: Path) -> None:
        path = root / "annotations" / "captions_train2017.json"
        path.write_text(path.read_text().replace('"image_id": 100012', '"image_id": 5'))
        assert left(root, reader="coco", train="train2017")[1]["notes"]["captions_of_unlisted_images"] == 4

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"caption"', '"title"', "has no 'caption'; is it COCO's captions file"),
            ('"image_id": 9', '"image_id": "9"', "where an integer id should be"),
            ('"id": 9', '"id": null', "where an integer id should be"),
            ('"file_name": "000000000009.png"', '"file_name": 3', "where a name should be"),
            ('"annotations"', '"notes"', "has no 'annotations'"),
            ("{", "[", "is not valid JSON"),
        ],
    )
    def test_another_form_is_refused(self, root: Path, old: str, new: str, message: str) -> None:
        path = root / "annotations" / "captions_train2017.json"
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(DataError, match=rf"captions_train2017\.json.*{message}"):
            left(root, reader="coco", train="train2017")

    def test_nothing_there_says_what_to_get(self, root: Path) -> None:
        with pytest.raises(DataError, match=r"val2017 is missing: get the captions and the images of 'val2017'"):
            collect(params(root, reader="coco", val="val2017"), "val")
        (root / "annotations" / "captions_train2017.json").unlink()
        with pytest.raises(DataError, match=r"captions_train2017\.json is missing: get .* for example train2017"):
            left(root, reader="coco", train="train2017")


class TestNames:
    @pytest.mark.parametrize(
        ("caption", "present", "expected"),
        [
            ("A bus with two wine glasses", ["bus", "wine glass"], ["bus", "wine", "glasses"]),
            ("buses and benches", ["bus", "bench"], ["buses", "benches"]),
            ("People on skis, a child's bikes", ["person", "skis", "bicycle"], ["people", "skis", "child's", "bikes"]),
            ("a teddy bear", ["bear"], []),
            ("a teddy bear and a bear", ["teddy bear", "bear"], ["teddy", "bear"]),
            ("a puppy, ponies and knives", ["dog", "horse", "knife"], ["puppy", "ponies", "knives"]),
            ("a cell phone on a dining table", ["cell phone"], ["cell", "phone"]),
            ("a mouse", ["cat"], []),
            ("", ["cat"], []),
        ],
    )  # fmt: skip
    def test_words_that_name_what_is_there(self, caption: str, present: list[str], expected: list[str]) -> None:
        columns = {COCO_CLASSES.index(name) for name in present}
        assert Names(COCO_CLASSES).shown(caption, columns) == set(expected)

    def test_every_line_of_the_synonyms_is_of_a_category_and_no_word_of_two(self) -> None:
        synonyms = read_synonyms()
        assert set(synonyms) <= set(COCO_CLASSES)
        every = [word for name in synonyms for word in synonyms[name]]
        assert len(set(every)) == len(every)
        assert not set(every) & set(COCO_CLASSES)

    def test_own_names_go_before_synonyms(self) -> None:
        assert Names(["person", "man"]).shown("a man", {0}) == frozenset()
        assert Names(["person", "man"]).shown("a man", {1}) == {"man"}
        assert Names(["12", "."]).shown("a 12 .", {0, 1}) == frozenset()


class TestWebdataset:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write_shard(
            tmp_path / "train" / "0.tar",
            {"2.txt": b"a cat\n", "1.jpg": png(1), "1.txt": b"\xef\xbb\xbfa dog", "2.PNG": png(2)},
        )
        return tmp_path

    def read(self, root: Path, pattern: str = "train/*.tar") -> tuple[Any, dict[str, Any]]:
        return left(root, reader="webdataset", train=pattern)

    def test_pairs_are_found_in_any_order_and_read_where_they_lie(self, root: Path) -> None:
        write_shard(root / "train" / "1.tar", {"deep/1.webp": png(3), "deep/1.json": b'{"caption": "a fish"}'})
        before = sorted(path for path in root.rglob("*"))
        table, report = self.read(root)
        assert by_id(table) == {"train/0.tar/1": "a dog", "train/0.tar/2": "a cat", "train/1.tar/deep/1": "a fish"}
        assert table.paths == ["train/0.tar", "train/0.tar", "train/1.tar"]
        assert [table.open(row).getpixel((0, 0))[0] for row in range(3)] == [37, 74, 111]
        assert sorted(path for path in root.rglob("*")) == before
        assert kinds(report) == {}
        assert report["notes"] == {"shards": 2, "other_members": 0}

    def test_text_goes_before_json_and_other_members_are_counted(self, root: Path) -> None:
        members = {
            "a.jpg": png(),
            "a.json": b'{"caption": "no"}',
            "a.txt": b"yes",
            "a.cls": b"3",
            "README.md": b"x",
            "a.seg.png": b"",
        }
        write_shard(root / "train" / "0.tar", members)
        table, report = self.read(root)
        assert table.captions == ["yes"]
        assert report["notes"]["other_members"] == 3

    def test_what_is_no_pair_is_left_out_with_its_reason(self, root: Path) -> None:
        write_shard(
            root / "train" / "1.tar",
            {
                "a.jpg": png(), "b.txt": b"a dog", "c.jpg": png(), "c.json": b"{", "d.jpg": png(), "d.json": b"[]",
                "e.jpg": png(), "e.json": b'{"caption": NaN}', "f.jpg": png(), "f.json": b'{"caption": 3}',
                "g.jpg": png(), "g.txt": b"\xff", "h.jpg": png(), "h.txt": b" ", "i.jpg": b"no image", "i.txt": b"x",
                "j.jpg": png(), "j.txt": b"x" * (2**20 + 1), "k.jpg": png(), "k.json": b"[" * 100_000,
                "l.jpg": png(), "l.json": b'{"caption": "\\ud800"}', "v1.2.jpg": png(), "v1.2.txt": b"a dog",
            },
        )  # fmt: skip
        table, report = self.read(root)
        assert table.ids == ["train/0.tar/1", "train/0.tar/2"]
        assert kinds(report) == {
            "broken_annotation": 6, "empty_caption": 2, "missing_annotation": 2, "missing_image": 2,
            "undecodable_image": 1,
        }  # fmt: skip

    def test_a_second_member_of_a_key_is_a_problem_and_the_first_counts(self, root: Path) -> None:
        with tarfile.open(root / "train" / "0.tar", "w") as archive:
            for name, content in [("1.jpg", png(1)), ("1.txt", b"one"), ("1.txt", b"two"), ("1.png", png(2))]:
                archive.addfile(header(name, size=len(content)), io.BytesIO(content))
        table, report = self.read(root)
        assert table.captions == ["one"]
        assert table.open(0).getpixel((0, 0))[0] == 37
        assert kinds(report) == {"duplicate_id": 2}

    @pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/../../b", "file:///a"])
    def test_member_names_are_never_followed(self, root: Path, name: str) -> None:
        write_shard(root / "train" / "1.tar", {f"{name}.jpg": png(), f"{name}.txt": b"a dog"})
        table, report = self.read(root)
        assert len(table) == 2
        assert set(kinds(report)) == {"outside_root"}

    def test_links_and_devices_in_a_shard_are_not_followed(self, root: Path) -> None:
        with tarfile.open(root / "train" / "1.tar", "w") as archive:
            for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
                archive.addfile(header(f"{number}.jpg", type=kind, linkname="/etc/passwd"))
                archive.addfile(header(f"{number}.txt", size=1), io.BytesIO(b"x"))
        table, report = self.read(root)
        assert len(table) == 2
        assert kinds(report) == {"missing_image": 4}

    def test_names_that_are_no_text_are_problems(self, root: Path) -> None:
        write_shard(root / "train" / "1.tar", {"\udce9.jpg": png(), "\udce9.txt": b"a dog"}, tarfile.GNU_FORMAT)
        assert set(kinds(self.read(root)[1])) == {"bad_name"}

    def test_of_a_shard_that_is_cut_off_what_stands_before_counts(self, root: Path) -> None:
        whole = write_shard(
            root / "train" / "1.tar", {"a.txt": b"a fish", "a.jpg": png(), "b.txt": b"x", "b.jpg": png()}
        )
        whole.write_bytes(whole.read_bytes()[:3600])
        table, report = self.read(root)
        assert table.captions == ["a dog", "a cat", "a fish"]
        assert kinds(report) == {"broken_shard": 1, "missing_image": 1}
        with pytest.raises(DataError, match=r"broken_shard: train train/1\.tar: the shard is cut off within 'b\.jpg'"):
            collect(params(root, reader="webdataset", train="train/*.tar"), "train")

    @pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
    def test_a_compressed_shard_says_what_to_do(self, root: Path, mode: str) -> None:
        with tarfile.open(root / "train" / f"1.tar.{mode}", f"w:{mode}") as archive:
            archive.addfile(header("a.jpg"))
        with pytest.raises(DataError, match=rf"1\.tar\.{mode} is compressed \(.*: unpack the archive itself"):
            self.read(root, "train/*")

    def test_shards_outside_are_not_opened(self, root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        secret = write_shard(tmp_path_factory.mktemp("secret") / "a.tar", {"s.jpg": png(), "s.txt": b"a secret"})
        (root / "train" / "2.tar").symlink_to(secret)
        (root / "train" / "3.tar").symlink_to("nowhere.tar")
        table, report = self.read(root)
        assert len(table) == 2
        assert kinds(report) == {"broken_shard": 1, "outside_root": 1}
        for pattern in ("../*.tar", "/etc/*.tar", "train/../../*.tar"):
            with pytest.raises(ParamsError, match=r"ttd\.captions\.train: .* is no pattern of files below"):
                self.read(root, pattern)

    def test_nothing_there_says_what_a_pattern_is(self, root: Path) -> None:
        for pattern in ("val/*.tar", "train/{000..003}.tar", "["):
            with pytest.raises(DataError, match=r"holds no file .*: ttd\.captions\.train is the pattern of the shards"):
                self.read(root, pattern)
        with pytest.raises(ParamsError, match=r"ttd\.captions\.images: the images of webdataset lie in its shards"):
            left(root, reader="webdataset", train="train/*.tar", images="x")
