"""What a killed DVC leaves, made by hand, and `dvc repro` before and after the mending."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
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


def test_a_broken_lock_file_is_kept_and_git_s_version_put_in_its_place(project: Path) -> None:
    """Without a run cache, as after a plain `dvc pull`, all stages would run again if it were only removed."""
    for command in ("init --quiet", "add dvc.lock", "-c user.name=t -c user.email=t@t commit --quiet -m state"):
        subprocess.run(["git", *command.split()], cwd=project, check=True)
    lock = project / "dvc.lock"
    whole = lock.read_text()
    shutil.rmtree(project / ".dvc" / "cache" / "runs")
    break_lock_file(project)
    broken = lock.read_text()
    (done,) = dvc_records.mend(project)
    assert "git's last version is in its place" in done
    assert (lock.read_text(), (project / "dvc.lock.broken").read_text()) == (whole, broken)
    assert "Running stage" not in dvc(project, "repro").stdout


def test_an_unfinished_merge_is_left_to_the_person(project: Path) -> None:
    lock = project / "dvc.lock"
    lock.write_text("<<<<<<< HEAD\n" + lock.read_text())
    before = lock.read_text()
    (said,) = dvc_records.mend(project)
    assert "git checkout --ours dvc.lock" in said
    assert lock.read_text() == before


def test_a_run_that_another_checkout_is_writing_is_left_alone(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shared = tmp_path_factory.mktemp("shared")
    dvc(project, "cache", "dir", "--local", str(shared))
    key = shared / "runs" / "ab" / ("ab" + "0" * 62)
    key.mkdir(parents=True)
    (key / ".half.tmp").write_text("cmd: x")
    assert dvc_records.mend(project) == []
    old = time.time() - 7200
    os.utime(key, (old, old))
    assert len(dvc_records.mend(project)) == 2
    assert not key.exists()


def test_it_refuses_while_a_stage_of_dvc_runs(project: Path) -> None:
    """DVC holds no lock of its own meanwhile."""
    (project / "dvc.yaml").write_text(PIPELINE.replace("cp source copy", "touch at-work; sleep 30; cp source copy"))
    running = subprocess.Popen([str(Path(sys.executable).parent / "dvc"), "repro"], cwd=project)
    try:
        while not (project / "at-work").exists():
            assert running.poll() is None
            time.sleep(0.1)
        with pytest.raises(ClipdistillError, match="at work here, process"):
            dvc_records.mend(project)
    finally:
        subprocess.run(["pkill", "-KILL", "-P", str(running.pid)], check=False)
        running.kill()
        running.wait()


def test_it_waits_for_nobody_and_touches_nothing_of_a_dvc_at_work(project: Path) -> None:
    from dvc.repo import Repo

    break_list_of_locks(project)
    with Repo(str(project)) as repo, repo.lock, pytest.raises(ClipdistillError, match="at work"):
        dvc_records.mend(project)
    assert (project / ".dvc" / "tmp" / "rwlock").exists()


def test_a_folder_of_no_project_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClipdistillError, match="no DVC project"):
        dvc_records.mend(tmp_path)
