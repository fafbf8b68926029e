"""Experiments on a real pipeline: a search, and the tables by which runs are compared."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Project

pytestmark = pytest.mark.slow


@pytest.fixture
def with_presets(project: Project) -> Iterator[Project]:
    """The finished project with experiments/ in it."""
    folder = project.folder / "experiments"
    shutil.copytree(ROOT / "experiments", folder, ignore=shutil.ignore_patterns("studies.db", "__pycache__"))
    yield project
    shutil.rmtree(folder)


def test_the_metrics_are_one_line(finished: Project) -> None:
    shown = json.loads(finished.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert list(shown) == ["metrics/summary.json"]
    figures = shown["metrics/summary.json"]["data"]
    students = {"cdul", "dense", "ccd", "global", "supervised"}
    assert set(figures["mAP"]) == students | {"teacher", "teacher_views", "teacher_dense"}
    assert set(figures["label_mAP"]) == {"global", "cdul", "cdul_refined", "dense", "ccd"}
    assert set(figures["zsl_mAP"]) == set(figures["gzsl_mAP"]) == {"mkt", "untuned", "teacher", "teacher_global"}
    assert figures["mAP"]["cdul"] == finished.json("metrics/cdul.json")["val"]["mAP"]


def test_a_search_runs_its_trials_and_goes_on_from_them(with_presets: Project) -> None:
    metric = "metrics/labels/cdul.json:train.final_mAP"
    command = ["python", "experiments/search.py", "--target", "pseudo_label@cdul", "--metric", metric, "--trials"]
    space = "pseudo_label.cdul.threshold=0.0:0.4"
    source = {"PYTHONPATH": str(ROOT / "src")}
    first = with_presets.run(*command, "1", space, **source).stdout
    assert re.findall(r"^Running stage '(?:.*:)?([^']+)':", first, flags=re.MULTILINE) == ["pseudo_label@cdul"]
    second = with_presets.run(*command, "2", space, **source).stdout
    assert "best of 2" in second
    assert with_presets.run("git", "status", "--porcelain", "--untracked-files=no").stdout == ""
    assert with_presets.changed() == set()
    shown = with_presets.run("dvc", "exp", "show", "--csv").stdout
    assert "search-0" in shown
    assert "search-1" in shown
    with sqlite3.connect(with_presets.folder / "experiments" / "studies.db") as database:
        values = [row[0] for row in database.execute("select value from trial_values order by trial_id")]
    with_presets.run("dvc", "exp", "apply", "search-1")
    assert values[-1] == with_presets.json(metric.partition(":")[0])["train"]["final_mAP"]
    with_presets.run("dvc", "exp", "remove", "search-0", "search-1")


def test_a_search_that_is_told_to_end_puts_the_workspace_back(with_presets: Project) -> None:
    command = ["python", "experiments/search.py", "--target", "train@global", "--study", "ended", "--trials", "1"]
    environment = with_presets.environment | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "train.recipe.epochs=50:60"],
        cwd=with_presets.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as search:
        assert search.stdout is not None
        for line in search.stdout:
            if line.startswith("epoch 1/"):
                os.kill(search.pid, signal.SIGTERM)
        assert search.wait() == 128 + signal.SIGTERM
    assert with_presets.run("git", "status", "--porcelain", "--untracked-files=no").stdout == ""
    assert with_presets.changed() == set()


def test_plots_have_a_curve_of_precision_and_recall(finished: Project, tmp_path: Path) -> None:
    shown = json.loads(finished.run("dvc", "plots", "show", "--json", "-o", str(tmp_path / "plots")).stdout)
    assert not shown.get("errors")
    assert shown["data"]["precision and recall over all classes"]
