"""The files that later stages read instead of raw data: what is no image table or class list is refused."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from clipdistill.datasets import table
from clipdistill.datasets.table import ClassName, ImageTable
from clipdistill.errors import ArtifactError


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Path of a table of one image, with a class list in the folder."""
    sides = np.full(1, 6, np.int32)
    made = ImageTable(Path("images"), ["a"], ["a.jpg"], sides, sides, sides.astype(np.int64), ["0" * 32], 100)
    made.write(tmp_path / "images.parquet")
    table.write_classes(tmp_path / "classes.yaml", [ClassName("1e5", "1e5"), ClassName("null", "2001-01-01")])
    return tmp_path / "images.parquet"


def test_names_that_look_like_other_values_stay_names(written: Path) -> None:
    found = table.read_classes(written.parent / "classes.yaml")
    assert found == [ClassName("1e5", "1e5"), ClassName("null", "2001-01-01")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "cat",
        "3",
        "- cat",
        "- {name: cat}",
        "- {name: 3, prompt: cat}",
        "- {name: cat, prompt: null}",
        "- {name: cat, prompt: cat, seen: 1}",
        "- {name: cat, prompt: cat, hidden: true}",
        "- {name: cat, prompt: a}\n- {name: cat, prompt: b}",
        "- &a {name: cat, prompt: cat}\n- *a",
        "[" * 5000,
        "2001-99-99",
    ],
)
def test_other_yaml_is_no_class_list(written: Path, text: str) -> None:
    file = written.parent / "classes.yaml"
    file.write_text(text)
    with pytest.raises(ArtifactError, match=r"classes\.yaml is not a class list of this version: run `dvc repro"):
        table.read_classes(file)


def test_bytes_and_folders_are_no_class_list(written: Path) -> None:
    file = written.parent / "classes.yaml"
    file.write_bytes(b"\xff")
    with pytest.raises(ArtifactError, match="is not a class list"):
        table.read_classes(file)
    with pytest.raises(ArtifactError, match="is not a class list"):
        table.read_classes(written.parent)


PLACE = {"image_root": "images", "max_pixels": 100, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "place",
    [None, [], "text", {}, PLACE | {"more": 1}, PLACE | {"image_root": 3}, PLACE | {"max_pixels": "100"},
     PLACE | {"max_pixels": True}, PLACE | {"sha256": 1}],
)  # fmt: skip
def test_a_table_without_its_place_is_refused(written: Path, place: object) -> None:
    written.with_suffix(".yaml").write_text(yaml.safe_dump(place))
    with pytest.raises(ArtifactError, match=r"images\.parquet is not an image table of this version"):
        ImageTable.load(written)


def test_a_damaged_table_is_refused(written: Path) -> None:
    whole = written.read_bytes()
    # The fourth byte is the first of a page's header, which Arrow refuses in another way than the rest.
    for content in (b"", whole[:-1], whole[:4] + b"\xff" + whole[5:], b"PAR1" * 20):
        written.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"(?s)images\.parquet cannot be read .*dvc repro format"):
            ImageTable.load(written)


def test_a_byte_that_a_disk_has_changed_is_noticed(written: Path) -> None:
    """Sixteen of two flips a byte of such a table give other widths or heights, and Parquet reads them gladly."""
    whole = written.read_bytes()
    for place in range(0, len(whole), 37):
        written.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        with pytest.raises(ArtifactError, match=r"images\.parquet (was altered|cannot be read|is not an image table)"):
            ImageTable.load(written)
    written.write_bytes(whole)
    assert len(ImageTable.load(written)) > 0
