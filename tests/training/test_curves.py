import json
import math
from pathlib import Path

import pytest

from clipdistill.training.curves import Curves

ROWS = [{"loss": 0.5 / epoch, "val_map": 50.0 + epoch} for epoch in range(1, 4)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, earlier: list[dict[str, float]], later: list[dict[str, float]]) -> None:
    curves = Curves(folder, earlier)
    for row in later:
        curves.add(row)
    curves.close()


def test_one_table_a_number_without_times(tmp_path: Path) -> None:
    write(tmp_path / "curves", [], ROWS)
    text = (tmp_path / "curves" / "plots" / "metrics" / "loss.tsv").read_text()
    assert text.split() == ["step", "loss", "1", "0.5", "2", "0.25", "3", repr(0.5 / 3)]
    summary = json.loads((tmp_path / "curves" / "metrics.json").read_text())
    assert summary == {"loss": 0.5 / 3, "val_map": 53.0, "step": 3}


def test_a_resumed_run_has_each_epoch_once(tmp_path: Path) -> None:
    write(tmp_path / "whole", [], ROWS)
    write(tmp_path / "resumed", [], ROWS[:2])
    write(tmp_path / "resumed", ROWS[:1], ROWS[1:])
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, [], [{"loss": 1.0, "val_map": math.nan}, {"loss": math.inf, "val_map": 3.0}])
    assert (tmp_path / "plots" / "metrics" / "val_map.tsv").read_text().split() == ["step", "val_map", "2", "3.0"]
    assert (tmp_path / "plots" / "metrics" / "loss.tsv").read_text().split() == ["step", "loss", "1", "1.0"]


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    curves = Curves(None, ROWS[:1])
    curves.add(ROWS[1])
    curves.close()
    assert curves.rows == ROWS[:2]
    assert not list(tmp_path.iterdir())


def test_no_dvc_yaml_and_no_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "curves", [], ROWS)
    assert not list(tmp_path.rglob("dvc.yaml"))
    assert [path.name for path in tmp_path.iterdir()] == ["curves"]
