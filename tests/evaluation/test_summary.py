"""What becomes of the metrics files of all methods."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipdistill import store
from clipdistill.errors import ArtifactError
from clipdistill.evaluation import summary


def test_figures_are_one_a_method_and_one_a_kind_of_label(tmp_path: Path) -> None:
    store.write_json(tmp_path / "cdul.json", {"val": {"mAP": 90.67, "CF1": 77.5, "top3": {"CP": 80.0}}})
    store.write_json(tmp_path / "teacher.json", {"val": {"mAP": 61.04}})
    store.write_json(tmp_path / "labels" / "cdul.json", {"train": {"global_mAP": 60.77, "final_mAP": 88.33}})
    store.write_json(tmp_path / "train" / "cdul.json", {"train": {"initial_mAP": 88.33, "refined_mAP": 92.13}})
    assert summary.figures(tmp_path) == {
        "mAP": {"teacher": 61.04, "cdul": 90.67},
        "label_mAP": {"cdul": 88.33, "cdul_refined": 92.13},
    }


def test_what_was_not_evaluated_is_left_out(tmp_path: Path) -> None:
    store.write_json(tmp_path / "cdul.json", {"val": {"images": 20, "labelled": 0}})
    store.write_json(tmp_path / "labels" / "cdul.json", {"train": {"final_mAP": None}})
    assert summary.figures(tmp_path) == {"mAP": {}, "label_mAP": {}}


def test_f1_at_thresholds_of_each_class_is_told_where_it_is_known(tmp_path: Path) -> None:
    common = {"mAP": 90.0, "CF1": 1.0, "OF1": 2.0}
    store.write_json(tmp_path / "cdul.json", {"val": common})
    assert "thresholds" not in summary.render(tmp_path)
    own, oracle = {"CF1": 77.5, "OF1": 78.5}, {"CF1": 87.5, "OF1": 88.5}
    store.write_json(tmp_path / "cdul.json", {"val": {**common, "own": own, "oracle": oracle}})
    store.write_json(tmp_path / "teacher.json", {"val": {**common, "mAP": 60.0, "oracle": oracle}})
    lines = summary.render(tmp_path).splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("at thresholds of each class"))
    heads, found = lines[begin : begin + 2], lines[begin + 2 : begin + 4]
    assert [head.split()[-4:] for head in heads] == [["own", "own", "oracle", "oracle"], ["CF1", "OF1"] * 2]
    assert [line.split()[-4:] for line in found] == [
        ["-", "-", "87.50", "88.50"],
        ["77.50", "78.50", "87.50", "88.50"],
    ]
    assert max(map(len, lines)) <= 80


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ccd.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"ccd\.json is not JSON"):
        summary.figures(tmp_path)
