"""What a stage leaves of itself: its exit code, and the record of its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = """
from clipdistill import stage
from clipdistill.errors import DataError

def main() -> None:
    stage.count("views", 30)
    stage.count("views", 12)
    {body}

stage.run(main)
"""


def run(folder: Path, body: str = "", *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = folder / "embed.py"
    script.write_text(SCRIPT.format(body=body))
    if not (folder / "params.yaml").exists():
        (folder / "params.yaml").write_text("dataset: {name: pets}\n")
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | environment
    )


def records(folder: Path, dataset: str = "pets") -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in (folder / ".work" / "times" / dataset).glob("*")}


def test_a_stage_leaves_its_time_and_counts_under_its_name(tmp_path: Path) -> None:
    assert run(tmp_path, "", "cam", "views.zarr", "out.zarr").returncode == 0
    assert run(tmp_path).returncode == 0
    found = records(tmp_path)
    assert set(found) == {"embed@cam.json", "embed.json"}
    assert found["embed@cam.json"]["counts"] == {"views": 42}
    assert 0 <= found["embed.json"]["seconds"] < 60
    assert found["embed.json"]["finished"].endswith("+00:00")


def test_a_record_is_of_the_data_set_that_the_stage_began_with(tmp_path: Path) -> None:
    change = "import pathlib; pathlib.Path('params.yaml').write_text('dataset: {name: birds}')"
    assert run(tmp_path, change).returncode == 0
    first = records(tmp_path)
    assert run(tmp_path).returncode == 0
    assert (records(tmp_path), list(records(tmp_path, "birds"))) == (first, ["embed.json"])


def test_a_parameter_that_is_refused_stops_a_stage_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("dataset: {name: 7}\n")
    result = run(tmp_path, "print('begun')")
    assert (result.returncode, result.stdout) == (2, "")
    assert "dataset.name" in result.stderr
    assert not (tmp_path / ".work").exists()


def test_a_stage_that_fails_leaves_no_record(tmp_path: Path) -> None:
    result = run(tmp_path, "raise DataError('a.jpg: is empty')")
    assert (result.returncode, result.stderr) == (3, "error: a.jpg: is empty\n")
    assert run(tmp_path, "1 / 0").returncode == 1
    assert records(tmp_path) == {}


def test_what_the_system_refuses_is_one_line_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("")
    result = run(tmp_path, "import pathlib; pathlib.Path('metrics').mkdir()")
    assert (result.returncode, result.stderr) == (4, "error: metrics: File exists\n")
    assert run(tmp_path, "raise OSError('of no file')").stderr.startswith("Traceback")


def test_only_the_process_that_began_the_stage_leaves_a_record(tmp_path: Path) -> None:
    assert run(tmp_path, RANK="1", WORLD_SIZE="2").returncode == 0
    assert run(tmp_path, RANK="0", WORLD_SIZE="2", CLIPDISTILL_LAUNCHED=str(os.getpid())).returncode == 0
    assert records(tmp_path) == {}


def test_a_record_that_cannot_be_written_does_not_spoil_the_stage(tmp_path: Path) -> None:
    (tmp_path / ".work").write_text("a file where the folder should be")
    result = run(tmp_path)
    assert result.returncode == 0
    assert "time of the stage is not recorded" in result.stderr
