"""What a killed DVC leaves, made by hand, and `dvc repro` before and after the mending."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clipdistill import dvc_records
from clipdistill.errors import ClipdistillError

PIPELINE = """\
stages:
  copy:
    cmd: cp source copy
    deps: [source]
    outs: [copy]
"""


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    command = [str(Path(sys.executable).parent / "dvc"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose stage has run."""
    dvc(tmp_path, "init", "--no-scm")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "source").write_text("first")
    assert dvc(tmp_path, "repro").returncode == 0
    return tmp_path


def break_list_of_locks(project: Path) -> None:
    (project / ".dvc" / "tmp" / "rwlock").write_text('{"read": {"/some')


def empty_run(project: Path) -> None:
    """As a kill between the folder and its entry leaves it, with dvc.lock not written yet."""
    (entry,) = (project / ".dvc" / "cache" / "runs").glob("*/*/*")
    entry.unlink()
    (project / "dvc.lock").unlink()


def break_lock_file(project: Path) -> None:
    lock = project / "dvc.lock"
    lock.write_text(lock.read_text().partition("cmd:")[0] + "cm")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (break_list_of_locks, "list of locks"),
        (empty_run, "without an entry"),
        (break_lock_file, "record of the stages"),
    ],
)
def test_what_stops_dvc_for_ever_is_mended(project: Path, harm: Callable[[Path], None], says: str) -> None:
    harm(project)
    assert dvc(project, "repro").returncode != 0, "DVC mends this by itself now: this part can go"
    (removed,) = dvc_records.mend(project)
    assert says in removed
    after = dvc(project, "repro")
    assert after.returncode == 0, after.stderr
    assert (project / "copy").read_text() == "first"
    assert "up to date" in dvc(project, "status").stdout


def test_an_unfinished_entry_of_the_run_cache_goes_and_a_finished_one_stays(project: Path) -> None:
    (entry,) = (project / ".dvc" / "cache" / "runs").glob("*/*/*")
    unfinished = entry.with_name(".abcdefgh.tmp")
    unfinished.write_text("cmd: cp source copy\n")
    (removed,) = dvc_records.mend(project)
    assert "not finished" in removed
    assert entry.exists()
    assert not unfinished.exists()
    assert dvc_records.mend(project) == []


def test_it_waits_for_nobody_and_touches_nothing_of_a_dvc_at_work(project: Path) -> None:
    from dvc.repo import Repo

    break_list_of_locks(project)
    with Repo(str(project)) as repo, repo.lock, pytest.raises(ClipdistillError, match="at work"):
        dvc_records.mend(project)
    assert (project / ".dvc" / "tmp" / "rwlock").exists()


def test_a_folder_of_no_project_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClipdistillError, match="no DVC project"):
        dvc_records.mend(tmp_path)
