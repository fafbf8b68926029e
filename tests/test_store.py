import json
import os
import pickle
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from clipdistill import layout, store
from clipdistill.errors import ArtifactError
from clipdistill.layout import Blocks

PROVENANCE = {"table": "abc", "kind": "global"}


def write(path: Path, **arrays: np.ndarray | Blocks) -> None:
    store.write_group(path, arrays, PROVENANCE)


@settings(max_examples=30, deadline=None)
@given(
    array=npst.arrays(
        st.sampled_from([np.float32, np.float16, np.int8, np.int64]),
        npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=40),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("group") / "a.zarr"
    write(path, x=array)
    group = store.read_group(path, PROVENANCE)
    np.testing.assert_array_equal(group.read("x"), array)
    assert group.read("x").dtype == array.dtype
    assert group.shape("x") == array.shape


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    write(tmp_path / "a.zarr", x=values)
    write(tmp_path / "b.zarr", x=values)
    manifests = [(tmp_path / name / store.MANIFEST).read_bytes() for name in ("a.zarr", "b.zarr")]
    assert manifests[0] == manifests[1]


def test_zero_rows_and_prime_row_counts_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", none=np.empty((0, 4), np.float32), prime=np.arange(5717 * 3).reshape(5717, 3))
    group = store.read_group(tmp_path / "a.zarr")
    assert group.read("none").shape == (0, 4)
    np.testing.assert_array_equal(group.read("prime", 5000, 5003), np.arange(15000, 15009).reshape(3, 3))
    assert len(list((tmp_path / "a.zarr" / "prime" / "c").rglob("*"))) < 5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_values_are_refused_and_nothing_is_left(tmp_path: Path, value: float) -> None:
    array = np.zeros((4, 2), np.float32)
    array[2, 1] = value
    with pytest.raises(ArtifactError, match="row 2"):
        write(tmp_path / "a.zarr", x=array)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_in_place_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", x=np.zeros((5, 2), np.float32), old=np.zeros(3, np.float32))
    write(tmp_path / "a.zarr", x=np.ones((2, 2), np.float32))
    group = store.read_group(tmp_path / "a.zarr")
    assert group.read("x").tolist() == [[1, 1], [1, 1]]
    with pytest.raises(ArtifactError, match="no array 'old'; it has x"):
        group.read("old")


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays in blocks of files of 1,024 rows of four float32."""
    monkeypatch.setattr(layout, "_FILE_BYTES", 16_384)


def in_blocks(array: np.ndarray, size: int) -> Blocks:
    starts = range(0, len(array), size)
    return Blocks(array.shape, str(array.dtype), (array[start : start + size] for start in starts))


def test_an_array_in_blocks_gives_the_same_bytes_whatever_their_size(small_files: None, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5_000, 4)).astype(np.float32)
    manifests = set()
    for size in (1, 700, 1_024, 5_000):
        write(tmp_path / "a.zarr", x=in_blocks(array, size), small=array[:3])
        manifests.add((tmp_path / "a.zarr" / store.MANIFEST).read_bytes())
    assert len(manifests) == 1
    group = store.read_group(tmp_path / "a.zarr", PROVENANCE)
    np.testing.assert_array_equal(group.read("x"), array)
    np.testing.assert_array_equal(group.read("x", 1_000, 4_321), array[1_000:4_321])
    np.testing.assert_array_equal(group.read("small"), array[:3])
    assert len([file for file in (tmp_path / "a.zarr" / "x" / "c").rglob("*") if file.is_file()]) == 5


def test_an_array_in_one_block_lies_as_a_whole_one_does(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5_000, 4)).astype(np.float32)
    write(tmp_path / "a.zarr", x=array)
    write(tmp_path / "b.zarr", x=in_blocks(array, 1_234))
    manifests = [(tmp_path / name / store.MANIFEST).read_bytes() for name in ("a.zarr", "b.zarr")]
    assert manifests[0] == manifests[1]


def test_blocks_of_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", x=Blocks((0, 4), "float32", []))
    assert store.read_group(tmp_path / "a.zarr").read("x").shape == (0, 4)


def test_a_late_value_that_is_not_finite_is_named_by_its_row_and_nothing_is_left(
    small_files: None, tmp_path: Path
) -> None:
    array = np.zeros((5_000, 4), np.float32)
    array[4_321, 2] = np.inf
    with pytest.raises(ArtifactError, match=r"a\.zarr: x holds NaN or infinity, first in row 4321"):
        write(tmp_path / "a.zarr", x=in_blocks(array, 700))
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_end_early_leave_the_old_artifact(small_files: None, tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", x=np.ones((2, 2), np.float32))
    array = np.zeros((5_000, 4), np.float32)
    with pytest.raises(ArtifactError, match="4000 rows came of an array"):
        write(tmp_path / "a.zarr", x=Blocks((5_000, 4), "float32", [array[:4_000]]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    assert store.read_group(tmp_path / "a.zarr").read("x").tolist() == [[1, 1], [1, 1]]


def test_a_disk_that_refuses_is_named_and_nothing_is_left(small_files: None, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5_000, 4)).astype(np.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
    try:
        with pytest.raises(ArtifactError, match=r"a\.zarr: x: cannot be written .*too large.*free space"):
            write(tmp_path / "a.zarr", x=in_blocks(array, 700))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that may not be written, with a file; root, who may write everywhere, is nobody meanwhile."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.json").write_text("old")
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65_534)
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def test_a_read_only_place_is_named_and_stays_as_it_was(read_only: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a\.zarr: cannot be written .*Permission denied.*or permission"):
        write(read_only / "a.zarr", x=np.zeros((2, 2), np.float32))
    with pytest.raises(ArtifactError, match=r"a\.json: cannot be written .*Permission denied"):
        store.write_atomically(read_only / "a.json", b"new")
    assert [file.name for file in read_only.iterdir()] == ["a.json"]
    assert (read_only / "a.json").read_text() == "old"


def test_an_error_of_what_makes_the_blocks_is_not_put_down_to_the_disk(tmp_path: Path) -> None:
    def blocks() -> Iterator[np.ndarray]:
        yield np.zeros((2, 4), np.float32)
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):  # ArtifactError is none
        write(tmp_path / "a.zarr", x=Blocks((5, 4), "float32", blocks()))
    assert list(tmp_path.iterdir()) == []


def _shard(path: Path) -> Path:
    return next(file for file in sorted((path / "x" / "c").rglob("*")) if file.is_file())


def _truncate(path: Path) -> None:
    _shard(path).write_bytes(_shard(path).read_bytes()[:-3])


def _flip(path: Path) -> None:
    content = bytearray(_shard(path).read_bytes())
    content[len(content) // 2] ^= 1
    _shard(path).write_bytes(content)


def _edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


DAMAGES = {
    "missing": (lambda path: _shard(path).unlink(), "is missing"),
    "empty": (lambda path: _shard(path).write_bytes(b""), "has 0 bytes"),
    "truncated": (_truncate, "bytes"),
    "flipped": (_flip, "was altered"),
    "attribute": (lambda path: _edit(path / "zarr.json", '"abc"', '"xyz"'), "was altered"),
    "stray": (lambda path: (path / "x" / "c" / "9.partial").write_bytes(b"1"), "does not belong"),
    "manifest gone": (lambda path: (path / store.MANIFEST).unlink(), "never finished"),
    "manifest damaged": (lambda path: (path / store.MANIFEST).write_text("{"), "damaged"),
    "manifest of no size": (lambda path: _edit(path / store.MANIFEST, '"bytes"', '"cytes"'), "json is damaged"),
    "manifest of no list": (lambda path: (path / store.MANIFEST).write_text('{"files": ["a"]}'), "json is damaged"),
    "manifest without end": (lambda path: (path / store.MANIFEST).write_text("[" * 5000), "json is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    write(tmp_path / "a.zarr", x=np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    store.read_group(tmp_path / "a.zarr")
    damage(tmp_path / "a.zarr")
    with pytest.raises(ArtifactError, match=message):
        store.read_group(tmp_path / "a.zarr")


@pytest.mark.parametrize("name", ["zarr.json", "x/zarr.json", "x/c/0/0"])
def test_what_is_no_zarr_is_refused_whoever_vouches_for_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zarr"
    write(path, x=np.ones((5, 2), np.float32))
    (path / name).write_bytes(b"[]")
    store.write_manifest(path)
    with pytest.raises(ArtifactError, match=r"a\.zarr.* cannot be read \(.*dvc pull"):
        store.read_group(path).read("x")


def test_a_missing_artifact_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="dvc repro"):
        store.read_group(tmp_path / "none.zarr")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_an_older_zarr_is_never_opened(tmp_path: Path) -> None:
    """Version 2 of the format knows a codec that unpickles."""
    array = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "filters": [{"id": "pickle"}]}
    for name, text in {
        ".zgroup": '{"zarr_format": 2}',
        ".zattrs": '{"format_version": 1}',
        "x/.zarray": json.dumps(array | {"compressor": None, "fill_value": None, "order": "C"}),
    }.items():
        (tmp_path / "a.zarr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a.zarr" / name).write_text(text)
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    (tmp_path / "a.zarr" / "x" / "0").write_bytes(pickle.dumps(trap))
    store.write_manifest(tmp_path / "a.zarr")
    with pytest.raises(ArtifactError, match=r"a\.zarr cannot be read"):
        store.read_group(tmp_path / "a.zarr")
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_group_at_all_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "zarr.json").write_text("no JSON")
    store.write_manifest(tmp_path / "a.zarr")
    with pytest.raises(ArtifactError, match=r"a\.zarr cannot be read"):
        store.read_group(tmp_path / "a.zarr")


def test_another_provenance_names_both(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", x=np.zeros(2, np.float32))
    with pytest.raises(ArtifactError, match=r"table = 'abc'.*'other'"):
        store.read_group(tmp_path / "a.zarr", {"table": "other"})


def test_atomic_write_leaves_the_old_file_when_the_disk_refuses(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(ArtifactError, match="cannot be written"):
        store.write_atomically(target, b"a folder stands here")
    assert list(tmp_path.iterdir()) == [target]


def test_fingerprint_ignores_key_order_and_sees_values() -> None:
    assert store.fingerprint({"a": 1, "b": [2]}) == store.fingerprint({"b": [2], "a": 1})
    assert store.fingerprint({"a": 1}) != store.fingerprint({"a": 2})


def test_what_a_killed_process_left_is_swept_and_what_a_live_one_is_writing_stays(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {f"a.json.{ended.pid}.partial", f"a.json.{os.getppid()}.partial", f"b.json.{ended.pid}.partial"}
    for name in [*names, "a.json.notes.partial"]:
        (tmp_path / name).write_text("half")
    (tmp_path / f"a.zarr.{ended.pid}.partial").mkdir()
    store.write_json(tmp_path / "a.json", {})
    write(tmp_path / "a.zarr", x=np.zeros(2, np.float32))
    left = {path.name for path in tmp_path.iterdir()} - {"a.json", "a.zarr", "a.json.notes.partial"}
    assert left == names - {f"a.json.{ended.pid}.partial"}
