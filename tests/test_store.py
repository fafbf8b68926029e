from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from clipdistill import store
from clipdistill.errors import ArtifactError

PROVENANCE = {"table": "abc", "kind": "global"}


def write(path: Path, **arrays: np.ndarray) -> None:
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


def _shard(path: Path) -> Path:
    return next(file for file in sorted((path / "x" / "c").rglob("*")) if file.is_file())


def _truncate(path: Path) -> None:
    _shard(path).write_bytes(_shard(path).read_bytes()[:-3])


def _flip(path: Path) -> None:
    content = bytearray(_shard(path).read_bytes())
    content[len(content) // 2] ^= 1
    _shard(path).write_bytes(content)


def _edit_attribute(path: Path) -> None:
    meta = path / "zarr.json"
    meta.write_text(meta.read_text().replace('"abc"', '"xyz"'))


DAMAGES = {
    "missing": (lambda path: _shard(path).unlink(), "is missing"),
    "empty": (lambda path: _shard(path).write_bytes(b""), "has 0 bytes"),
    "truncated": (_truncate, "bytes"),
    "flipped": (_flip, "was altered"),
    "attribute": (_edit_attribute, "was altered"),
    "stray": (lambda path: (path / "x" / "c" / "9.partial").write_bytes(b"1"), "does not belong"),
    "manifest gone": (lambda path: (path / store.MANIFEST).unlink(), "never finished"),
    "manifest damaged": (lambda path: (path / store.MANIFEST).write_text("{"), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    write(tmp_path / "a.zarr", x=np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    store.read_group(tmp_path / "a.zarr")
    damage(tmp_path / "a.zarr")
    with pytest.raises(ArtifactError, match=message):
        store.read_group(tmp_path / "a.zarr")


def test_a_missing_artifact_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="dvc repro"):
        store.read_group(tmp_path / "none.zarr")


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
