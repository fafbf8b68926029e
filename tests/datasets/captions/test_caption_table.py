"""The caption table: what was written is read again, images are read where they lie, and changes are noticed."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from caption_layouts import SIZE, png, write_bytes, write_mask
from PIL import Image

from clipdistill.datasets.captions import masks
from clipdistill.datasets.captions.table import CaptionTable
from clipdistill.datasets.images import UnreadableImageError, content_hash
from clipdistill.errors import ArtifactError

MASK = [[0, 0, 1, 0, 0, 0], [0, 9, 0, 0, 0, 0], [0] * 6, [255] + [0] * 5]


@pytest.fixture
def table(tmp_path: Path) -> CaptionTable:
    """Two captions of one image, and one of an image within another file."""
    one, two = png(1), png(2)
    write_bytes(tmp_path / "raw" / "a.png", one)
    write_bytes(tmp_path / "raw" / "b.tar", b"x" * 512 + two + b"y" * 99)
    mask = write_mask(tmp_path / "raw" / "m.png", MASK).read_bytes()
    return CaptionTable(
        root=tmp_path / "raw",
        ids=["a-1", "a-2", "\u00fc"],
        paths=["a.png", "a.png", "b.tar"],
        offsets=np.array([0, 0, 512], np.int64),
        sizes=np.array([len(one), len(one), len(two)], np.int64),
        hashes=[content_hash(one), content_hash(one), content_hash(two)],
        captions=["A dog.", "Cat and dog", "\u00fc"],
        tags=[["dog"], ["cat", "dog"], ["\u00fc"]],
        truth=[["dog"], ["dog"], []],
        masks=["m.png", "", ""],
        mask_hashes=[content_hash(mask), "", ""],
        max_pixels=99,
    )


@pytest.fixture
def path(table: CaptionTable, tmp_path: Path) -> Path:
    table.write(tmp_path / "out" / "train.parquet")
    return tmp_path / "out" / "train.parquet"


def as_values(table: CaptionTable) -> dict[str, Any]:
    values = {field.name: getattr(table, field.name) for field in fields(table)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


@pytest.mark.parametrize("truth", [None, [["dog"], [], ["\u00fc"]]])
def test_a_table_comes_back(table: CaptionTable, tmp_path: Path, truth: list[list[str]] | None) -> None:
    table = replace(table, truth=truth)
    table.write(tmp_path / "t.parquet")
    loaded = CaptionTable.load(tmp_path / "t.parquet")
    assert as_values(loaded) == as_values(table)
    assert loaded.offsets.dtype == loaded.sizes.dtype == np.int64
    assert loaded.fingerprint == table.fingerprint
    assert len(loaded) == 3


def test_equal_tables_have_equal_bytes_wherever_the_images_lie(table: CaptionTable, path: Path, tmp_path: Path) -> None:
    replace(table, root=Path("elsewhere")).write(tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").read_bytes() == path.read_bytes()
    assert yaml.safe_load((tmp_path / "t.yaml").read_text())["image_root"] == "elsewhere"


@pytest.mark.parametrize(
    "change",
    [
        {"ids": ["a-1", "a-2", "b"]},
        {"hashes": ["0" * 32] * 3},
        {"captions": ["A dog", "Cat and dog", "\u00fc"]},
        {"tags": [["dog"], ["dog", "cat"], ["\u00fc"]]},
        {"truth": None},
        {"truth": [["dog"], [], []]},
        {"mask_hashes": ["0" * 32, "", ""]},
    ],
)
def test_the_fingerprint_knows_every_content(table: CaptionTable, change: dict[str, Any]) -> None:
    assert replace(table, **change).fingerprint != table.fingerprint


def test_the_fingerprint_knows_no_place(table: CaptionTable) -> None:
    moved = replace(table, root=Path("x"), paths=["1", "2", "3"], masks=["4", "", ""], offsets=np.zeros(3, np.int64))
    assert moved.fingerprint == table.fingerprint


def test_images_are_read_where_they_lie(table: CaptionTable) -> None:
    for row, seed in enumerate((1, 1, 2)):
        image = table.open(row)
        assert (image.mode, image.size) == ("RGB", SIZE)
        assert image.getpixel((0, 0)) == (37 * seed, 91 * seed, 11 * seed)


def test_an_image_that_changed_or_is_gone_is_named(table: CaptionTable) -> None:
    write_bytes(table.root / "a.png", png(3))
    (table.root / "b.tar").write_bytes((table.root / "b.tar").read_bytes()[:550])
    for row, name in ((0, "a.png"), (2, "b.tar")):
        with pytest.raises(UnreadableImageError, match=rf"{name}: its bytes have changed since the caption table"):
            table.open(row)
        (table.root / name).unlink()
        with pytest.raises(UnreadableImageError, match=rf"{name}: cannot be read \(No such file"):
            table.open(row)


def test_the_limit_on_pixels_holds_when_an_image_is_opened(table: CaptionTable) -> None:
    with pytest.raises(UnreadableImageError, match=r"6 x 4 pixels are more than ttd\.captions\.max_pixels = 23"):
        replace(table, max_pixels=23).open(0)


def test_a_mask_is_true_where_it_is_not_zero(table: CaptionTable) -> None:
    mask = table.open_mask(0)
    assert mask.dtype == np.bool_
    assert mask.tolist() == (np.array(MASK) != 0).tolist()


def test_masks_that_cannot_be_had_are_named(table: CaptionTable) -> None:
    with pytest.raises(UnreadableImageError, match="a-2: has no mask"):
        table.open_mask(1)
    small = write_mask(table.root / "m.png", [[1, 0]]).read_bytes()
    with pytest.raises(UnreadableImageError, match=r"m\.png: its bytes have changed"):
        table.open_mask(0)
    table.mask_hashes[0] = content_hash(small)
    with pytest.raises(UnreadableImageError, match=r"m\.png: has 2 x 1 pixels, the upright image 6 x 4"):
        table.open_mask(0)
    (table.root / "m.png").unlink()
    with pytest.raises(UnreadableImageError, match=r"m\.png: cannot be read"):
        table.open_mask(0)


def test_a_mask_of_floating_point_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    Image.fromarray(np.full((4, 6), np.nan, np.float32)).save(path)
    with pytest.raises(UnreadableImageError, match=r"m\.tif: has samples of floating point, which may be NaN"):
        masks.decode(path.read_bytes(), str(path), (6, 4))


def test_a_damaged_table_is_refused_wherever_the_damage_is(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(0, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        with pytest.raises(ArtifactError, match=r"(?s)train\.parquet .*(run `dvc repro`|or `dvc repro`)"):
            CaptionTable.load(path)
        path.write_bytes(whole[:place])
        with pytest.raises(ArtifactError, match=r"(?s)train\.parquet cannot be read .*run `dvc repro`"):
            CaptionTable.load(path)


@pytest.mark.parametrize("name", ["train.parquet", "train.yaml"])
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    path.with_name(name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name} is missing: run `dvc repro`, or `dvc pull`"):
        CaptionTable.load(path)


def test_a_table_of_another_form_is_refused(path: Path) -> None:
    whole = pq.read_table(path)
    for changed in (whole.drop(["mask"]), pa.table({"id": ["a"]}), whole.append_column("more", whole.column("id"))):
        pq.write_table(changed, path)
        with pytest.raises(ArtifactError, match=r"train\.parquet .*run `dvc repro`"):
            CaptionTable.load(path)


def test_truth_of_some_captions_alone_is_refused(table: CaptionTable, path: Path) -> None:
    replace(table, truth=[["dog"], None, []]).write(path)  # type: ignore[list-item]
    with pytest.raises(ArtifactError, match="knows the true words of some captions alone"):
        CaptionTable.load(path)


MODES = {"1": 1, "L": 7, "P": 3, "I;16": 300, "RGB": (0, 0, 1), "RGBA": (0, 2, 0, 0), "LA": (5, 0), "I": 70_000}


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_mask(table: CaptionTable, mode: str) -> None:
    image = Image.new(mode, SIZE)
    if mode == "P":
        image.putpalette([255] * 768)
    image.putpixel((4, 1), MODES[mode])
    for suffix in {"LA": ["png"], "I": ["tiff"]}.get(mode, ["png", "tiff"]):
        image.save(table.root / f"m.{suffix}")
        table.masks[0], table.mask_hashes[0] = f"m.{suffix}", content_hash((table.root / f"m.{suffix}").read_bytes())
        assert np.argwhere(table.open_mask(0)).tolist() == [[1, 4]]


@pytest.mark.parametrize("content", [b"", b"no image", png()[:40], None])
def test_what_is_no_mask_is_refused(table: CaptionTable, content: bytes | None) -> None:
    if content is None:
        Image.new("L", SIZE).save(table.root / "m.png", "JPEG")
        content = (table.root / "m.png").read_bytes()
    write_bytes(table.root / "m.png", content)
    table.mask_hashes[0] = content_hash(content)
    with pytest.raises(UnreadableImageError, match=r"m\.png: (is empty|is not an image of a format that keeps|cannot)"):
        table.open_mask(0)
