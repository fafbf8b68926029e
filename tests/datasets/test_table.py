"""The image table and the class list as files: what was written is read again, and nothing else is."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clipdistill.datasets.table import ClassName, ImageTable, read_classes, write_classes
from clipdistill.errors import ArtifactError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    sides = np.array([4, 5, 6], np.int32)
    hashes = [f"{row:032x}" for row in range(3)]
    table = ImageTable(
        Path("raw"), ["a", "b", "\u00fc"], ["a.jpg", "b.jpg", "\u00fc.jpg"], sides, sides, sides, hashes, 99
    )
    table.write(tmp_path / "images.parquet")
    return tmp_path / "images.parquet"


def test_a_table_that_is_cut_off_is_refused_wherever_it_ends(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"images\.parquet cannot be read .*run `dvc repro format`"):
            ImageTable.load(path)


def test_a_table_with_a_flipped_bit_is_refused_or_read_and_never_a_fault_of_the_program(path: Path) -> None:
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for place in rng.integers(0, len(whole), 300):
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            ImageTable.load(path)
        except ArtifactError:
            refused += 1
    assert refused > 100


def test_a_table_of_another_form_is_refused(path: Path) -> None:
    for columns in ({"id": ["a"]}, {"id": ["a"], "path": ["a"], "hash": ["a"]}):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(ArtifactError, match=r"images\.parquet .*run `dvc repro format`"):
            ImageTable.load(path)


@pytest.mark.parametrize(
    "text",
    [b"", b"[1]", b"a: [", b"\xff", b"image_root: 3\nmax_pixels: 1", b"image_root: a", b"image_root: a\nmax_pixels: b"],
)
def test_a_note_of_the_place_that_says_nothing_is_refused(path: Path, text: bytes) -> None:
    path.with_suffix(".yaml").write_bytes(text)
    with pytest.raises(ArtifactError, match=r"images\.parquet (cannot be read|is not an image table)"):
        ImageTable.load(path)


@pytest.mark.parametrize("name", ["images.parquet", "images.yaml"])
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    path.with_name(name).unlink()
    with pytest.raises(ArtifactError, match=rf"{re.escape(name)} is missing: run `dvc repro format`, or `dvc pull`"):
        ImageTable.load(path)


@pytest.mark.parametrize("text", [b"", b"3", b"[1]", b"a: [", b"\xff", b"- {name: a}", b"- a", b"{name: a, prompt: b}"])
def test_what_is_no_class_list_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "classes.yaml").write_bytes(text)
    with pytest.raises(ArtifactError, match=r"classes\.yaml is not a class list .*run `dvc repro format`"):
        read_classes(tmp_path / "classes.yaml")


@pytest.mark.parametrize("value", ["1", "null", "'false'", "[true]"])
def test_seen_is_true_or_false(tmp_path: Path, value: str) -> None:
    (tmp_path / "classes.yaml").write_text(f"- {{name: a, prompt: a, seen: {value}}}\n")
    with pytest.raises(ArtifactError, match=r"classes\.yaml is not a class list"):
        read_classes(tmp_path / "classes.yaml")


TEXT = st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1, max_size=9)


@given(st.lists(st.builds(ClassName, TEXT, TEXT, st.booleans()), min_size=1, max_size=5, unique_by=lambda c: c.name))
def test_a_class_list_comes_back_and_says_only_what_is_unseen(classes: list[ClassName]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classes.yaml"
        write_classes(path, classes)
        assert read_classes(path) == classes
        keys = [list(item) for item in yaml.safe_load(path.read_text(encoding="utf-8"))]
    assert keys == [["name", "prompt"] if item.seen else ["name", "prompt", "seen"] for item in classes]
