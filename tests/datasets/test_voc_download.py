"""Fetching VOC: the archives come from a local folder in place of the internet."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
import torchvision
from raw_layouts import Objects, write_voc

from clipdistill.datasets import voc
from clipdistill.datasets.prompt_names import VOC_CLASSES
from clipdistill.errors import DataError
from clipdistill.params import DatasetParams


def params(root: Path, **changes: Any) -> DatasetParams:  # noqa: ANN401
    return DatasetParams(name="mini", reader="voc", root=str(root), **changes)


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    source = tmp_path / "source"
    parts: dict[str, dict[str, dict[str, Objects]]] = {
        "VOCtrainval_06-Nov-2007.tar": {"trainval": {"000005": []}},
        "VOCtest_06-Nov-2007.tar": {"test": {"000001": []}},
    }
    for name, splits in parts.items():
        base = write_voc(source / name / "VOCdevkit" / "VOC2007", splits, VOC_CLASSES)
        with tarfile.open(source / f"{name}.part", "w") as archive:
            archive.add(base.parent, "VOCdevkit")
    fetched = []

    def fetch(url: str, root: str | Path, filename: str, md5: str) -> None:
        fetched.append(filename)
        if not (source / f"{filename}.part").is_file():
            raise OSError("no route to host")
        with tarfile.open(source / f"{filename}.part") as archive:
            archive.extractall(root, filter="data")

    monkeypatch.setattr(torchvision.datasets.voc, "download_and_extract_archive", fetch)
    return fetched


def test_both_archives_of_2007_are_fetched_once(tmp_path: Path, archives: list[str]) -> None:
    wanted = params(tmp_path / "raw", year=2007, train="trainval", val="test", download=True)
    for _ in range(2):
        data = voc.read(wanted)
        assert data.splits["train"].ids == ["000005"]
        assert data.splits["val"].ids == ["000001"]
    assert sorted(archives) == ["VOCtest_06-Nov-2007.tar", "VOCtrainval_06-Nov-2007.tar"]


def test_only_the_missing_half_is_fetched(tmp_path: Path, archives: list[str]) -> None:
    write_voc(tmp_path / "VOCdevkit" / "VOC2007", {"trainval": {"000005": []}}, VOC_CLASSES)
    voc.read(params(tmp_path, year=2007, train="trainval", val="test", download=True))
    assert archives == ["VOCtest_06-Nov-2007.tar"]


def test_nothing_is_fetched_unasked(tmp_path: Path, archives: list[str]) -> None:
    with pytest.raises(DataError, match=r"dataset\.download: true"):
        voc.read(params(tmp_path / "raw", year=2007, train="trainval", val="test"))
    assert archives == []


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server whose archive unpacks beside the root; where it would go."""
    stolen = tmp_path / "outside.txt"
    stolen.write_text("text")
    with tarfile.open(tmp_path / "hostile.tar", "w") as archive:
        archive.add(stolen, "../outside.txt")
    stolen.unlink()

    def retrieve(url: str, filename: str | Path, *_: object, **__: object) -> None:
        Path(filename).write_bytes((tmp_path / "hostile.tar").read_bytes())

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", retrieve)
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, **_: url)
    return stolen


def test_an_archive_that_is_not_the_published_one_is_not_unpacked(tmp_path: Path, hostile: Path) -> None:
    with pytest.raises(DataError, match=r"VOCtrainval_11-May-2012\.tar failed \(File not found or corrupted"):
        voc.read(params(tmp_path / "raw", download=True))
    assert not hostile.exists()


def test_an_archive_is_unpacked_inside_its_root(tmp_path: Path, hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that has the published sum."""
    monkeypatch.setattr(torchvision.datasets.utils, "check_integrity", lambda *_: True)
    (tmp_path / "raw").mkdir()
    (tmp_path / "hostile.tar").rename(tmp_path / "raw" / "VOCtrainval_11-May-2012.tar")
    with pytest.raises(DataError, match=r"VOCtrainval_11-May-2012\.tar failed \(.*outside the destination"):
        voc.read(params(tmp_path / "raw", download=True))
    assert not hostile.exists()


@pytest.mark.usefixtures("archives")
def test_a_failed_download_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"VOCtrainval_11-May-2012\.tar failed \(no route to host\)"):
        voc.read(params(tmp_path / "raw", download=True))
