"""Readers of captions against damaged files: pairs whose images lie below the root, or an error for people.

Cases are the same in every run; CLIPDISTILL_FUZZ_SECONDS=600 draws new ones for that long.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from caption_layouts import (
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

import damage
from clipdistill.datasets.captions.collect import collect
from clipdistill.datasets.captions.table import CaptionTable

ROWS = [
    {"id": "1", "path": "a.png", "caption": "A dog, and a cat", "mask": "m.png"},
    {"id": "2", "path": "deep/b.png", "caption": "two fish", "mask": ""},
    {"id": "3", "path": "a.png", "caption": "a tree", "mask": ""},
]


def write_images_and_mask(root: Path) -> None:
    write_images(root, ["a.png", "deep/b.png"])
    write_mask(root / "m.png", [[1] * 6] * 4)


def write_rows_csv(root: Path) -> None:
    write_images_and_mask(root)
    write_csv(root / "train.csv", [row | {"tags": "dog|fish"} for row in ROWS])


def write_rows_parquet(root: Path) -> None:
    write_images_and_mask(root)
    write_parquet(root / "train.parquet", [row | {"tags": ["dog", "fish"]} for row in ROWS])


def write_coco(root: Path) -> None:
    write_coco_captions(
        root, "train", {1: ["a dog", "a cat"], 7: ["two dogs"]}, {1: [3], 7: [3, 5]}, {3: "dog", 5: "cat"}
    )


def write_shards(root: Path) -> None:
    write_shard(
        root / "1.tar", {"a.jpg": png(1), "a.txt": b"a dog", "b.json": b'{"caption": "a cat"}', "b.png": png(2)}
    )
    write_shard(
        root / "2.tar",
        {
            f"{'folder/' * 20}{number}.{end}": png() if end == "png" else b"a cat"
            for number in range(3)
            for end in ("txt", "png")
        },
    )


READERS: dict[str, tuple[Callable[[Path], None], dict[str, str], list[str]]] = {
    "csv": (write_rows_csv, {}, ["train.csv", "m.png", "a.png"]),
    "parquet": (write_rows_parquet, {"train": "train.parquet"}, ["train.parquet"]),
    "coco": (
        write_coco,
        {"reader": "coco", "train": "train"},
        ["annotations/captions_train.json", "annotations/instances_train.json"],
    ),
    "webdataset": (write_shards, {"reader": "webdataset", "train": "*.tar"}, ["1.tar", "2.tar"]),
}


def check_table(root: Path, table: CaptionTable) -> None:
    """What every later stage may rely on."""
    assert sorted(set(table.ids)) == table.ids
    assert len(table) > 0
    for row, path in enumerate(table.paths):
        assert (table.root / path).resolve().is_relative_to(root.resolve())
        assert table.open(row).mode == "RGB"
        assert table.captions[row].strip() == table.captions[row] != ""
        assert len(set(table.tags[row])) == len(table.tags[row]) > 0
        if table.truth is not None:
            assert set(table.truth[row]) <= set(table.tags[row])
        if table.masks[row]:
            assert table.open_mask(row).shape == table.open(row).size[::-1]


@pytest.mark.parametrize("name", READERS)
def test_damaged_captions_are_read_or_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write, settings, files = READERS[name]
    write(root)
    write_bytes(tmp_path / "secret.png", png())

    def read() -> None:
        check_table(root, collect(params(root, on_problem="leave_out", **settings), "train")[0])

    damage.fuzz(root, files, read, examples=100)


def test_a_damaged_caption_table_is_read_or_refused(tmp_path: Path) -> None:
    write_rows_csv(tmp_path)
    collect(params(tmp_path), "train")[0].write(tmp_path / "out.parquet")

    def read() -> None:
        found = CaptionTable.load(tmp_path / "out.parquet")
        assert {len(found.ids), len(found.paths), len(found.tags), len(found.offsets), len(found.hashes)} == {
            len(found)
        }
        assert len(found.fingerprint) == 64

    damage.fuzz(tmp_path, ["out.parquet", "out.yaml"], read, examples=100)
