"""Embedding as a stage: waiting for the shards of others."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from clipdistill import store
from clipdistill.clip import run
from clipdistill.distributed import Compute
from clipdistill.errors import ClipdistillError
from clipdistill.work import WORK_ROOT_VARIABLE, Work


@pytest.fixture
def embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run._Embedding:
    """An embedding of two shards, of which the first is done, without a teacher."""
    monkeypatch.setenv(WORK_ROOT_VARIABLE, str(tmp_path / "work"))
    work = Work("embed/test", "one", {"embedding": store.ArraySpec((8, 3), "float16", shard_rows=4)}, {}, {})
    work.write(0, {"embedding": np.zeros((4, 3), np.float16)})
    found = object.__new__(run._Embedding)
    found.compute = Compute(patience=1800)
    found._kind, found.jobs = "test", [run._Job(SimpleNamespace(out=tmp_path / "out.zarr"), work, work.pending())]
    return found


def test_a_process_waits_for_the_shards_of_others(embedding: run._Embedding, monkeypatch: pytest.MonkeyPatch) -> None:
    work = embedding.jobs[0].work
    looks = []

    def another_process(_seconds: float) -> None:
        looks.append(0)
        if len(looks) == 3:
            work.write(1, {"embedding": np.ones((4, 3), np.float16)})

    monkeypatch.setattr(run.time, "sleep", another_process)
    embedding.wait()
    embedding.seal()
    assert len(looks) == 3
    assert store.read_group(embedding.jobs[0].request.out).read("embedding").sum() == 12


def test_nobody_is_waited_for_without_end(embedding: run._Embedding, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 600))
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(run.time, "sleep", lambda _seconds: None)
    with pytest.raises(ClipdistillError, match="for 1800 seconds none of the 1 shards that are missing got done"):
        embedding.wait()


def test_the_process_that_is_late_is_named(embedding: run._Embedding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    (job,) = embedding.jobs
    embedding.jobs = [run._Job(job.request, job.work, [0, 1])]
    # The first shard is done, and it was process 0's; nothing is process 2's.
    assert embedding._late() == "process 1 (of 3, from 0) has ended or hangs"
