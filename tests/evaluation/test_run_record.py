"""How a run was made, as far as this checkout knows."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from clipdistill import __version__
from clipdistill.evaluation import run_record

ROOT = Path(__file__).resolve().parents[2]


def test_stages_are_named_as_in_the_pipeline_files() -> None:
    names = run_record.stage_names(ROOT)
    assert {"generate", "format", "embed@global", "embed@cam", "round@2", "train@ccd", "report"} <= set(names)
    assert len(names) == len(set(names))
    assert names.index("format") < names.index("embed@global") < names.index("train@cdul") < names.index("report")


def test_times_are_those_that_were_recorded(tmp_path: Path) -> None:
    record = '{"seconds": 4.0, "finished": "2026-01-02T03:04:05+00:00", "counts": {"views": 900}}'
    (tmp_path / "embed@global.json").write_text(record)
    (tmp_path / "format.json").write_text('{"seconds": ')
    (tmp_path / "train@ccd.json").write_text("[]")
    times, unrecorded = run_record.stage_times(tmp_path, ["format", "embed@global", "train@ccd", "report"])
    assert [(time.name, time.seconds, time.rates) for time in times] == [("embed@global", 4.0, {"views/s": 225.0})]
    assert unrecorded == ["format", "train@ccd", "report"]


def test_versions_begin_with_this_package() -> None:
    found = run_record.versions()
    assert list(found)[:2] == ["clipdistill", "Python"]
    assert found["clipdistill"] == __version__
    assert {"torch", "zarr", "dvc"} <= set(found)


def test_an_experiment_is_known_by_the_name_that_dvc_hands_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    assert run_record.experiment() is None
    monkeypatch.setenv("DVC_EXP_NAME", "proud-lion")
    assert run_record.experiment() == "proud-lion"


def test_the_commit_tells_changed_code_from_changed_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", *arguments], cwd=tmp_path, check=True
        )

    assert run_record.commit(tmp_path) == "not known: no git checkout"
    (tmp_path / "stages" / "ccd").mkdir(parents=True)
    for name in ("params.yaml", "stages/ccd/dvc.lock"):
        (tmp_path / name).write_text("a: 1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=one")
    clean = run_record.commit(tmp_path)
    assert len(clean) == 12
    (tmp_path / "stages" / "ccd" / "dvc.lock").write_text("a: 2\n")
    assert run_record.commit(tmp_path) == clean
    (tmp_path / "params.yaml").write_text("a: 2\n")
    assert run_record.commit(tmp_path) == f"{clean}, with changes in code or parameters"
