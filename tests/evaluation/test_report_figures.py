"""The report's figures are those of the metrics files."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_run import write_metrics

from clipdistill import store
from clipdistill.errors import ArtifactError
from clipdistill.evaluation import report_figures
from clipdistill.evaluation.report_figures import ORDER


def test_every_figure_is_read(tmp_path: Path) -> None:
    write_metrics(tmp_path, ["cat", "dog"])
    figures = report_figures.read(tmp_path)
    assert {method.key: method.map for method in figures.methods} == {
        key: 50.0 + 5 * number for number, key in enumerate(ORDER)
    }
    assert figures.top == "top3"
    assert [len(track.steps) for track in figures.labels] == [4, 2]
    assert figures.labels[1].steps == [("at the start", 60.0), ("after round 1", 60.0)]
    students = ["global", "cdul", "ccd", "supervised"]
    assert [[line.key for line in chart.series] for chart in figures.curves] == [students, students[:3], students]
    assert figures.thresholds == ["own", "oracle"]
    assert [(method.f1("CF1", "own"), method.f1("CF1", "oracle")) for method in figures.methods[:2]] == [
        (None, 71.0),
        (12.0, 72.0),
    ]
    assert figures.curves[0].series[0].points == tuple((epoch, 100 - 50 / epoch) for epoch in range(1, 6))
    assert figures.classes["cat"] == {key: 43.0 + 5 * number for number, key in enumerate(ORDER)}


def test_methods_that_are_absent_leave_no_trace(tmp_path: Path) -> None:
    write_metrics(tmp_path, ["cat"], ("teacher", "cdul"))
    (tmp_path / "labels" / "ccd.json").unlink()
    figures = report_figures.read(tmp_path)
    assert [method.key for method in figures.methods] == ["teacher", "cdul"]
    assert [track.key for track in figures.labels] == ["cdul"]
    assert {line.key for chart in figures.curves for line in chart.series} == {"cdul"}


def test_an_empty_folder_gives_empty_figures(tmp_path: Path) -> None:
    assert report_figures.read(tmp_path) == report_figures.Figures({}, [], [], [], [], {})


def test_without_ground_truth_only_losses_are_left(tmp_path: Path) -> None:
    write_metrics(tmp_path, ["cat"], labelled=False)
    figures = report_figures.read(tmp_path)
    assert len(figures.methods) == 8
    assert {method.map for method in figures.methods} == {None}
    assert [chart.title for chart in figures.curves] == ["Training loss"]
    assert (figures.labels, figures.classes, figures.thresholds) == ([], {}, [])


def test_a_stopping_rule_is_told_with_what_it_missed(tmp_path: Path) -> None:
    chosen = {"epoch": 3, "last_mAP": 97.3, "last_epoch": 4, "oracle_mAP": 98.0, "oracle_epoch": 2}
    store.write_json(tmp_path / "ccd.json", {"val": {"mAP": 97.2, **chosen}})
    (method,) = report_figures.read(tmp_path).methods
    assert method.stopping is not None
    for part in ("kept epoch 3 (97.20 mAP)", "last epoch, 4, has 97.30", "ground truth, 2, has 98.00"):
        assert part in method.stopping


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("average_precision/cdul.csv", "class,AP\ncat,high\n"),
        ("average_precision/cdul.csv", "name,AP\ncat,1\n"),
        ("precision_recall/cdul.csv", "recall,threshold\n1,2\n"),
        ("curves/cdul/plots/metrics/loss.tsv", "step\tloss\n1\n"),
        ("cdul.json", "{"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, text: str) -> None:
    write_metrics(tmp_path, ["cat"])
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    with pytest.raises(ArtifactError, match=Path(file).name):
        report_figures.read(tmp_path)
