import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipdistill import store
from clipdistill.errors import ArtifactError
from clipdistill.work import WORK_ROOT_VARIABLE, Work, release

PROVENANCE = {"table": "abc", "kind": "global"}


@pytest.fixture
def work_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(WORK_ROOT_VARIABLE, str(tmp_path / "work"))
    return tmp_path / "work"


SPEC = store.ArraySpec((10, 3), "float32", shard_rows=4)


def make_work(identity: str = "one") -> Work:
    return Work("embed/test", identity, {"x": SPEC}, {"offset": np.arange(11)}, PROVENANCE)


def rows(shard: int) -> np.ndarray:
    start, stop = SPEC.range_of(shard)
    return np.arange(start * 3, stop * 3, dtype=np.float32).reshape(-1, 3)


def test_shards_in_any_order_give_the_same_artifact(tmp_path: Path, work_root: Path) -> None:
    manifests = []
    for name, order in {"a": [0, 1, 2], "b": [2, 0, 1]}.items():
        work = make_work(name)
        for shard in order:
            work.write(shard, {"x": rows(shard)})
        work.seal(tmp_path / f"{name}.zarr")
        manifests.append((tmp_path / f"{name}.zarr" / store.MANIFEST).read_bytes())
    assert manifests[0] == manifests[1]
    np.testing.assert_array_equal(
        store.read_group(tmp_path / "a.zarr").read("x"), np.arange(30, dtype=np.float32).reshape(10, 3)
    )


def test_work_goes_on_where_it_was_and_only_with_the_same_inputs(tmp_path: Path, work_root: Path) -> None:
    make_work().write(1, {"x": rows(1)})
    assert make_work().pending() == [0, 2]
    assert make_work("other").pending() == [0, 1, 2]


def test_others_see_how_many_shards_are_left(work_root: Path) -> None:
    work, other = make_work(), make_work()
    assert other.unmarked() == 3
    work.write(1, {"x": rows(1)})
    assert other.unmarked() == 2
    for shard in (0, 2):
        work.write(shard, {"x": rows(shard)})
    work.seal(work_root / "out.zarr")
    assert other.unmarked() == 0


def test_a_shard_whose_file_was_damaged_is_done_again(tmp_path: Path, work_root: Path) -> None:
    work = make_work()
    for shard in range(3):
        work.write(shard, {"x": rows(shard)})
    (work.store / "x" / "c" / "1" / "0").write_bytes(b"broken")
    assert make_work().pending() == [1]


def test_seal_refuses_unfinished_work_and_sweeps_strays(tmp_path: Path, work_root: Path) -> None:
    work = make_work()
    work.write(0, {"x": rows(0)})
    with pytest.raises(ArtifactError, match="2 of 3 shards are not done"):
        work.seal(tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
    for shard in (1, 2):
        work.write(shard, {"x": rows(shard)})
    (work.store / "x" / "c" / "0" / "0.123.partial").write_bytes(b"left by a killed writer")
    work.seal(tmp_path / "out.zarr")
    assert not list((tmp_path / "out.zarr").rglob("*.partial"))


def test_wrong_rows_and_nan_never_become_a_shard(work_root: Path) -> None:
    work = make_work()
    with pytest.raises(ArtifactError, match="shape"):
        work.write(2, {"x": rows(0)})
    with pytest.raises(ArtifactError, match="NaN"):
        work.write(0, {"x": np.full((4, 3), np.nan, np.float32)})
    assert work.pending() == [0, 1, 2]


WRITER = """
import sys, numpy as np
from pathlib import Path
from clipdistill import store
from clipdistill.work import Work
specs = {"x": store.ArraySpec((200, 4096), "float32", shard_rows=1)}
work = Work("embed/kill", "id", specs, {}, {})
print("ready", flush=True)
for shard in work.pending():
    work.write(shard, {"x": np.random.default_rng(shard).normal(size=(1, 4096)).astype("float32")})
work.seal(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15])
def test_a_killed_writer_finishes_to_the_same_bytes(tmp_path: Path, delay: float) -> None:
    def start(work: str, out: Path) -> subprocess.Popen[str]:
        environment = os.environ | {WORK_ROOT_VARIABLE: str(tmp_path / work)}
        return subprocess.Popen(
            [sys.executable, "-c", WRITER, str(out)], env=environment, stdout=subprocess.PIPE, text=True
        )

    assert start("clean", tmp_path / "clean.zarr").wait() == 0
    victim = start("killed", tmp_path / "killed.zarr")
    assert victim.stdout is not None
    victim.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        victim.wait(timeout=max(delay, 1e-3))
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "killed.zarr").exists()
    assert start("killed", tmp_path / "killed.zarr").wait() == 0
    manifests = [json.loads((tmp_path / name / store.MANIFEST).read_text()) for name in ("clean.zarr", "killed.zarr")]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("left", ["done", "store.zarr", "half"])
def test_a_part_of_a_work_folder_is_no_work(tmp_path: Path, work_root: Path, left: str) -> None:
    """Neither taken for work nor in the way of it."""
    work = make_work()
    for shard in range(3):
        work.write(shard, {"x": rows(shard)})
    work.finish()
    if left == "half":
        shutil.rmtree(work.store / "offset" / "c")
    else:
        for part in work.folder.iterdir():
            if part.is_dir() and part.name != left:
                shutil.rmtree(part)
    again = make_work()
    assert again.pending() == [0, 1, 2]
    for shard in range(3):
        again.write(shard, {"x": rows(shard)})
    again.seal(tmp_path / "out.zarr")
    assert store.read_group(tmp_path / "out.zarr").read("offset").tolist() == list(range(11))
    assert list(work.folder.parent.iterdir()) == [work.folder]


def fill(identity: str = "one") -> Work:
    work = make_work(identity)
    for shard in work.pending():
        work.write(shard, {"x": rows(shard)})
    return work


def seal(out: Path, identity: str = "one") -> Work:
    work = fill(identity)
    work.seal(out)
    return work


def test_an_output_that_is_gone_before_it_was_committed_is_sealed_again_without_work(
    tmp_path: Path, work_root: Path
) -> None:
    out = tmp_path / "out.zarr"
    work = seal(out)
    before, file = (out / store.MANIFEST).read_bytes(), "x/c/0/0"
    assert (out / file).samefile(work.store / file)
    shutil.rmtree(out)
    again = make_work()
    assert again.pending() == []
    again.seal(out)
    assert (out / store.MANIFEST).read_bytes() == before


def test_where_there_are_no_links_the_shards_are_copied(
    tmp_path: Path, work_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another file system")

    work = fill()
    monkeypatch.setattr(os, "link", refuse)
    work.seal(tmp_path / "out.zarr")
    assert store.read_group(tmp_path / "out.zarr").shape("x") == (10, 3)
    assert not (tmp_path / "out.zarr" / "x/c/0/0").samefile(work.store / "x/c/0/0")


def test_what_is_kept_goes_when_it_was_read_or_other_inputs_were_sealed(tmp_path: Path, work_root: Path) -> None:
    work, other = seal(tmp_path / "out.zarr"), make_work("other")
    release(tmp_path / "another.zarr")
    assert work.folder.is_dir()
    release(tmp_path / "out.zarr")
    assert not work.folder.exists()
    assert other.folder.is_dir()
    first, second = seal(tmp_path / "out.zarr", "first"), seal(tmp_path / "out.zarr", "second")
    assert {path.name for path in second.folder.parent.iterdir()} == {other.folder.name, second.folder.name}
    assert not first.folder.exists()


@pytest.mark.parametrize("file", ["store.zarr/zarr.json", "store.zarr/offset/c/0", "made.json"])
def test_what_the_shards_stand_beside_is_made_anew_when_it_was_altered(
    tmp_path: Path, work_root: Path, file: str
) -> None:
    seal(tmp_path / "clean.zarr", "clean")
    work = make_work()
    work.write(0, {"x": rows(0)})
    altered = work.folder / file
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)
    for shard in (1, 2):
        work.write(shard, {"x": rows(shard)})
    with pytest.raises(ArtifactError, match="is gone or was altered"):
        work.seal(tmp_path / "out.zarr")
    assert make_work().pending() == [0, 1, 2]
    seal(tmp_path / "out.zarr")
    manifests = [(tmp_path / name / store.MANIFEST).read_bytes() for name in ("clean.zarr", "out.zarr")]
    assert manifests[0] == manifests[1]


def test_a_shard_of_another_run_is_not_taken_with_its_marker(work_root: Path) -> None:
    """Both are whole, and the marker says so: of another folder."""
    specs = {"x": store.ArraySpec((4, 2), "float32", 2)}
    ours, other = (Work("test", {"run": name}, specs, {}, {}) for name in ("ours", "other"))
    for shard in range(2):
        other.write(shard, {"x": np.full((2, 2), 7, np.float32)})
    shutil.copytree(other.store / "x" / "c", ours.store / "x" / "c")
    for marker in (other.folder / "done").iterdir():
        shutil.copy(marker, ours.folder / "done" / marker.name)
    assert ours.pending() == [0, 1]
    assert other.pending() == []
    (other.folder / "done" / "000000.json").write_bytes((other.folder / "done" / "000001.json").read_bytes())
    assert other.pending() == [0]
