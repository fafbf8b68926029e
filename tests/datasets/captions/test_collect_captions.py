"""Captions to caption tables: what is checked, counted, refused and written."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from caption_layouts import left, params, png, write_bytes, write_csv, write_images, write_mask, write_shard
from PIL import Image

from clipdistill import stage, store
from clipdistill.datasets import images
from clipdistill.datasets.captions.collect import collect, collect_all
from clipdistill.datasets.captions.table import CaptionTable
from clipdistill.errors import DataError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tables that name images below it; a stage would write beside it."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "raw", ["b.png", "a.png", "c.png"])
    write_mask(tmp_path / "raw" / "m.png", [[1] * 6] * 4)
    rows = [
        {"path": "b.png", "caption": "A dog and a cat", "tags": "dog|cat", "mask": "m.png"},
        {"path": "a.png", "caption": "the dog", "tags": "", "mask": ""},
        {"path": "b.png", "caption": "A dog", "tags": "dog", "mask": "m.png"},
    ]
    write_csv(tmp_path / "raw" / "train.csv", rows)
    write_csv(tmp_path / "raw" / "val.csv", [{"path": "c.png", "caption": "fish"}])
    return tmp_path / "raw"


def test_both_tables_are_written_and_everything_is_counted(root: Path) -> None:
    report = collect_all(params(root), "mini", 2)
    table = CaptionTable.load(stage.Paths("mini").captions("train"))
    assert table.ids == ["a.png", "b.png", "b.png-2"]
    assert table.paths == ["a.png", "b.png", "b.png"]
    assert table.captions == ["the dog", "A dog and a cat", "A dog"]
    assert table.tags == [["dog"], ["dog", "cat"], ["dog"]]
    assert table.truth == [[], ["dog", "cat"], ["dog"]]
    for row, path in enumerate(table.paths):
        data = (root / path).read_bytes()
        assert (table.offsets[row], table.sizes[row]) == (0, len(data))
        assert table.hashes[row] == images.content_hash(data)
    assert table.open_mask(2).all()
    assert CaptionTable.load(stage.Paths("mini").captions("val")).captions == ["fish"]
    assert report == {
        "reader": "table",
        "function_words_dropped": True,
        "train": {
            "pairs": 3,
            "images": 2,
            "candidates_per_caption": round(4 / 3, 4),
            "captions_with_one_candidate": 2,
            "distinct_words": 2,
            "captions_with_truth": 3,
            "true_words_per_caption": 1.0,
            "true_words_that_are_no_candidates": 0,
            "captions_with_mask": 2,
            "left_out": {},
            "left_out_pairs": [],
            "notes": {},
        },
        "val": {
            "pairs": 1,
            "images": 1,
            "candidates_per_caption": 1.0,
            "captions_with_one_candidate": 1,
            "distinct_words": 1,
            "captions_with_truth": 0,
            "true_words_per_caption": None,
            "true_words_that_are_no_candidates": 0,
            "captions_with_mask": 0,
            "left_out": {},
            "left_out_pairs": [],
            "notes": {},
        },
        "contents_in_both_splits": 0,
    }
    json.dumps(report, allow_nan=False)


def test_function_words_may_stay(root: Path) -> None:
    assert collect(params(root, drop_function_words=False), "train")[0].tags[0] == ["the", "dog"]


def test_bytes_do_not_depend_on_threads_or_on_the_order_of_the_rows(root: Path) -> None:
    rows = [{"id": str(row), "path": f"{'abc'[row % 3]}.png", "caption": f"a dog {row}x"} for row in range(12)]
    contents = []
    for order, workers in ((1, 1), (-1, 4)):
        write_csv(root / "train.csv", rows[::order])
        collect_all(params(root), "mini", workers)
        contents.append(
            [stage.Paths("mini").captions("train").with_suffix(suffix).read_bytes() for suffix in (".parquet", ".yaml")]
        )
    assert contents[0] == contents[1]


def test_an_image_is_decoded_once_whatever_the_number_of_its_captions(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    real = images.decode

    def counting(data: bytes, name: str, *rest: Any) -> Image.Image:  # noqa: ANN401
        names.append(Path(name).name)
        return real(data, name, *rest)

    monkeypatch.setattr(images, "decode", counting)
    collect(params(root), "train", 2)
    assert sorted(names) == ["a.png", "b.png"]


def spoil(root: Path) -> None:
    write_bytes(root / "a.png", b"")
    rows = [
        {"path": path, "caption": caption} for path, caption in (("b.png", "dog"), ("a.png", "cat"), ("b.png", "of"))
    ]
    write_csv(root / "train.csv", [*rows, {"path": "none.png", "caption": "dog"}])


def test_problems_stop_and_nothing_is_written(root: Path) -> None:
    spoil(root)
    with pytest.raises(DataError) as caught:
        collect_all(params(root), "mini", 1)
    text = str(caught.value)
    assert f"3 problem(s) in the captions of train, {root}" in text
    for line in ("1 missing_image", "1 no_candidates", "1 undecodable_image"):
        assert f"  {line}\n" in text
    assert "undecodable_image: train a.png: " in text
    assert "a.png: is empty" in text
    assert "no_candidates: train b.png-2: no word of of is a candidate" in text
    assert text.endswith("or set ttd.captions.on_problem: leave_out to go on without these pairs.")
    assert not Path("cache").exists()


def test_problems_leave_pairs_out_and_are_counted_and_logged(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    spoil(root)
    with caplog.at_level(logging.WARNING, "clipdistill.datasets.captions.collect"):
        table, report = left(root)
    assert table.captions == ["dog"]
    assert report["left_out"] == {"missing_image": 1, "no_candidates": 1, "undecodable_image": 1}
    assert [line.split(":")[0] for line in report["left_out_pairs"]] == ["none.png", "b.png-2", "a.png"]
    assert len(caplog.records) == 3


def test_nothing_left_always_stops(root: Path) -> None:
    write_csv(root / "val.csv", [{"path": "c.png", "caption": "it is"}])
    with pytest.raises(DataError, match=r"(?s)1 empty_split.*cannot be used: see ttd\.captions\.root and .*\.val"):
        collect(params(root, on_problem="leave_out"), "val")


def test_an_image_beyond_the_limit_is_refused_undecoded(root: Path) -> None:
    write_bytes(root / "c.png", png(size=(30, 20)))
    with pytest.raises(DataError, match=r"30 x 20 pixels are more than ttd\.captions\.max_pixels = 100"):
        collect(params(root, max_pixels=100), "val")
    assert collect(params(root, max_pixels=600), "val")[0].max_pixels == 600


def test_a_mask_has_the_size_of_the_upright_image(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 6)).save(root / "b.png", exif=exif)
    write_csv(root / "train.csv", [{"path": "b.png", "caption": "a dog", "mask": "m.png"}])
    table, _ = collect(params(root), "train")
    assert table.open(0).size == (6, 4)
    assert table.open_mask(0).shape == (4, 6)


def test_an_image_of_both_splits_is_counted(root: Path) -> None:
    write_bytes(root / "c.png", (root / "a.png").read_bytes())
    assert collect_all(params(root), "mini", 1)["contents_in_both_splits"] == 1


def test_an_image_that_is_a_pipe_or_a_folder_is_left_out(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    rows = [{"path": name, "caption": "dog"} for name in ("a.png", "pipe.png", "folder.png")]
    write_csv(root / "train.csv", rows)
    assert left(root)[1]["left_out"] == {"missing_image": 2}


def test_the_stage_writes_tables_and_metrics(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(root / "s.tar", {"1.jpg": png(), "1.txt": b"a dog"})
    text = (
        f"dataset: {{name: mini}}\nttd: {{captions: {{reader: webdataset, root: {root}, train: s.tar, val: s.tar}}}}\n"
    )
    Path("params.yaml").write_text(text)
    monkeypatch.syspath_prepend(ROOT / "stages" / "ttd")
    monkeypatch.setattr(sys, "argv", ["tags.py"])
    import tags

    stage.run(tags.main)
    report = json.loads(Path("metrics/ttd/captions.json").read_text())
    assert report["train"]["pairs"] == report["contents_in_both_splits"] == 1
    assert CaptionTable.load(Path("cache/mini/ttd/captions/val.parquet")).ids == ["s.tar/1"]
    assert store.fingerprint(report)
