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


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ccd.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"ccd\.json is not JSON"):
        summary.figures(tmp_path)
