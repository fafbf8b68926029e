"""The choice of the reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_layouts import write_coco, write_jpeg, write_nuswide, write_text, write_voc

from clipdistill.datasets import formatted
from clipdistill.datasets.readers import read_raw
from clipdistill.errors import ClipdistillError, DataError
from clipdistill.params import DatasetParams

READERS = ["voc", "coco", "nuswide", "formatted", "folder"]


def make(reader: str, root: Path) -> dict[str, Any]:
    """Write one image a split in the reader's layout; returns the parameters that differ from the defaults."""
    names = {"train": "train", "val": "val"}
    if reader == "voc":
        write_voc(root, {"train": {"a": [("cat", False)]}, "val": {"b": [("cat", False)]}}, ["cat"])
    elif reader == "coco":
        write_coco(root, "train", {1: [5]}, {5: "cat"})
        write_coco(root, "val", {2: [5]}, {5: "cat"})
    elif reader == "nuswide":
        names = {"train": "Train", "val": "Test"}
        write_nuswide(root, {"x/1.jpg": [1]}, {"x/2.jpg": [1]}, ["cat"])
    elif reader == "formatted":
        for split in names:
            formatted.write_formatted(root, split, [f"{split}.jpg"], np.ones((1, 1), np.int8))
            write_jpeg(root / f"{split}.jpg")
        names["images"] = str(root)
    else:
        write_jpeg(root / "train" / "a.jpg")
        write_jpeg(root / "val" / "b.jpg")
        write_text(root / "labels.csv", "path,cat\ntrain/a.jpg,1\nval/b.jpg,1\n")
    write_text(root / "classes.txt", "cat\n")
    return names


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_gives_the_same_form(tmp_path: Path, reader: Any) -> None:  # noqa: ANN401
    names = make(reader, tmp_path)
    data = read_raw(DatasetParams(name="mini", reader=reader, root=str(tmp_path), **names))
    assert data.problems == []
    assert [item.name for item in data.classes] == ["cat"]
    assert data.open_classes == data.classes
    for split in ("train", "val"):
        part = data.splits[split]
        assert len(part.ids) == len(part.paths) == 1
        assert part.labels.tolist() == [[1]]
        assert part.labels.dtype == np.int8
        assert (data.image_root / part.paths[0]).is_file()


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_explains_that_nothing_is_there(tmp_path: Path, reader: Any) -> None:  # noqa: ANN401
    with pytest.raises(DataError, match=r"missing|no VOC|cannot be listed|is no folder") as caught:
        read_raw(DatasetParams(name="mini", reader=reader, root=str(tmp_path / "none")))
    assert len(str(caught.value)) > 80


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_a_prompt_name_for_an_unknown_class(tmp_path: Path, reader: Any) -> None:  # noqa: ANN401
    names = make(reader, tmp_path)
    wanted = DatasetParams(name="mini", reader=reader, root=str(tmp_path), prompt_names={"dog": "hound"}, **names)
    with pytest.raises(ClipdistillError, match=r"dataset\.prompt_names\.dog: the data set has no such class"):
        read_raw(wanted)
