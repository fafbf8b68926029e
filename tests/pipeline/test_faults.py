"""Kills, full disks, changed inputs, two runs at once, processes that hang: real processes, and equal bytes at the end.

docs/robustness.md says what is promised. The scenarios are in fault_scenarios.py: each runs in a process of its own,
which imports everything once and forks for every attempt.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Project, copy_project

from clipdistill import distributed
from clipdistill.errors import ClipdistillError

pytestmark = pytest.mark.slow

SEED = "20"


class Scenarios:
    """A copy of the finished miniature, to be harmed."""

    def __init__(self, finished: Project, folder: Path) -> None:
        self.project = Project(folder)
        copy_project(finished.folder, folder)
        shutil.rmtree(folder / ".work", ignore_errors=True)

    def run(self, name: str, *arguments: str, before: tuple[str, ...] = ()) -> Any:  # noqa: ANN401 - any JSON value
        script = Path(__file__).with_name("fault_scenarios.py")
        command = [*before, sys.executable, str(script), name, *arguments]
        environment = {"PYTHONPATH": f"{self.project.folder / 'src'}", "OMP_NUM_THREADS": "1"}
        return json.loads(self.project.run(*command, **environment).stdout)


@pytest.fixture
def scenarios(finished: Project, tmp_path: Path) -> Scenarios:
    return Scenarios(finished, tmp_path / "harmed")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_embedding_killed_twenty_times_repeats_no_finished_shard(scenarios: Scenarios, processes: str) -> None:
    seen = scenarios.run("embed_killed", SEED, processes)
    assert (seen["kills"], seen["shards"]) == (20, 15)
    # Of the views of a kill those of the shards in flight are repeated: at most six a process, of 36 views.
    assert 0 < seen["repeated"] <= 20 * int(processes) * 6 * 36


def test_a_training_killed_twenty_times_ends_in_the_same_bytes(scenarios: Scenarios) -> None:
    scenarios.project.set({"train.recipe.epochs": 5})
    assert scenarios.run("train_killed", SEED)["kills"] == 20


@pytest.mark.parametrize(
    ("name", "argument", "outs"),
    [
        ("ttd/train", "ttd", ["cache/scenes/ttd/adapter", "metrics/curves/ttd", "metrics/train/ttd.json"]),
        ("mkt/train", "mkt", ["cache/scenes/students/mkt", "metrics/curves/mkt"]),
    ],
)
def test_the_training_of_a_branch_killed_ends_in_the_same_bytes(
    scenarios: Scenarios, name: str, argument: str, outs: list[str]
) -> None:
    scenarios.project.set({"ttd.recipe.epochs": 2})
    assert scenarios.run("branch_killed", SEED, name, argument, *outs)["kills"] == 5


def test_dvc_repro_killed_twenty_times_needs_no_person(scenarios: Scenarios) -> None:
    seen = scenarios.run("repro_killed", SEED)
    assert seen["kills"] == 20
    # Some kills came after the artifacts were sealed, while DVC hashed and committed: they cost no view.
    assert seen["late"] > 0
    assert seen["repeated"] <= (20 - seen["late"]) * 6 * 36


def test_what_changes_between_a_kill_and_the_next_run_mixes_no_shards(scenarios: Scenarios) -> None:
    seen = scenarios.run("changed_between")
    assert set(seen) == {"other_grid", "other_weights", "other_images"}


def test_a_class_renamed_between_a_kill_and_the_next_run_is_in_the_student(scenarios: Scenarios) -> None:
    assert scenarios.run("class_renamed") == {"same": True, "herring": True}


def test_damage_is_named_by_the_stage_that_would_use_it(scenarios: Scenarios) -> None:
    said = scenarios.run("damaged")
    shard, top = "cache/scenes/train/snippets.zarr/embedding/c/0/0", "cache/scenes/train/snippets.zarr"
    assert f"error: {shard} has " in said["truncated"]
    assert f"error: {shard} was altered" in said["flipped"]
    assert f"error: {shard} has " in said["of another run"]
    assert f"error: {top}/zarr.json has " in said["attribute"]
    assert f"error: {top} was made with table = " in said["whole, of another run"]


def test_of_two_runs_of_a_stage_the_second_waits_and_says_for_whom(scenarios: Scenarios) -> None:
    seen = scenarios.run("two_at_once")
    assert seen["same"]
    assert seen["said"].startswith(f"embed@snippets: process {seen['first']} on ")
    assert "runs this stage already; waiting until it has ended" in seen["said"]


def test_of_two_repros_the_second_refuses_and_names_the_first(scenarios: Scenarios) -> None:
    seen = scenarios.run("two_repros_at_once")
    assert seen["first"] == 0
    assert seen["refused"] > 0
    assert "is busy" in seen["said"]
    assert f"(PID {seen['pid']})" in seen["said"]


def _in_a_namespace() -> tuple[str, ...] | None:
    """A command that runs another where it may mount a file system, and nobody else sees it; None: there is none."""
    command = ("unshare", "--map-root-user", "--mount")
    try:
        trial = subprocess.run([*command, "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return command if trial.returncode == 0 else None


def test_a_full_disk_is_named_leaves_nothing_half_written_and_is_gone_on_from(scenarios: Scenarios) -> None:
    namespace = _in_a_namespace()
    if namespace is None:
        pytest.skip("no file system can be mounted here; test_store.py fills one by its limit on files")
    seen = scenarios.run("full_disk", before=namespace)
    for errors in seen.values():
        assert all("No space left on device" in error and "free space" in error for error in errors)
    files = {error.split(": ")[1].rsplit("/", 1)[-1] for error in seen["train"] + seen["evaluate"]}
    assert {"checkpoint.pt", "cdul.json"} <= files
    assert all("/embed/snippets-" in error for error in seen["embed"])


MEETING = """
import os, sys, time
from pathlib import Path
import torch
from clipdistill import distributed, stage

def main():
    with distributed.process_group(torch.device("cpu")):
        distributed.barrier()
        Path(str(os.getpid())).touch()
        if sys.argv[1] == "hang" and distributed.rank() == 1:
            time.sleep(600)
        distributed.barrier()
        time.sleep(600)

stage.run(main)
"""


@pytest.fixture
def meeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "meeting.py").write_text(MEETING)
    return tmp_path / "meeting.py"


def test_a_process_that_hangs_is_named_when_patience_is_over(
    meeting: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLIPDISTILL_PATIENCE", "2")
    with pytest.raises(ClipdistillError, match=r"process 0 \(of 2, from 0\) of .* ended with exit code 1"):
        distributed.launch([str(meeting), "hang"], 2)
    said = capfd.readouterr().err
    assert "has had no word for 2 seconds from process 1, which hangs" in said
    assert "Traceback" not in said


def test_the_processes_of_a_stage_end_when_what_started_them_was_killed(meeting: Path) -> None:
    program = f"from clipdistill import distributed; distributed.launch([{str(meeting)!r}, 'wait'], 2)"
    launcher = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
    while len(processes := [int(path.name) for path in meeting.parent.iterdir() if path.name.isdecimal()]) < 2:
        assert launcher.poll() is None
        time.sleep(0.1)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    while any(Path(f"/proc/{process}").exists() and not _is_dead(process) for process in processes):
        time.sleep(0.1)


def _is_dead(process: int) -> bool:
    """Whether it has ended, if only nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
