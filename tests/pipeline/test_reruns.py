"""Which change reruns what: the table of docs/design.md, on a real pipeline."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Project

pytestmark = pytest.mark.slow

TRAINED = {"cdul", "global", "supervised"}
TEACHERS = {"teacher", "teacher_views"}
METHODS = TRAINED | TEACHERS


def stages(name: str, items: set[str]) -> set[str]:
    return {f"{name}@{item}" for item in items}


EVERYTHING = {"generate", "pretrain_clip", "format", "embed_text", "embed@global", "embed@snippets", "similarity"}
EVERYTHING |= stages("pseudo_label", {"cdul", "global"}) | stages("train", TRAINED) | stages("predict", TRAINED)
EVERYTHING |= stages("predict_teacher", TEACHERS) | stages("evaluate", METHODS)

RERUNS_FROM: list[tuple[dict[str, Any], set[str]]] = [
    ({"pseudo_label.cdul.threshold": 0.3}, {"pseudo_label@cdul", "predict_teacher@teacher_views"}),
    ({"pseudo_label.cdul.weight": 0.5}, {"pseudo_label@cdul", "predict_teacher@teacher_views"}),
    (
        {"pseudo_label.temperature": 0.02},
        stages("pseudo_label", {"cdul", "global"}) | stages("predict_teacher", TEACHERS),
    ),
    (
        {"pseudo_label.standardise": "both"},
        stages("pseudo_label", {"cdul", "global"}) | stages("predict_teacher", TEACHERS),
    ),
    ({"prompts.templates": ["a {}"]}, {"embed_text"}),
    ({"dataset.prompt_names": {"fish": "small fish"}}, {"format"}),
    ({"views.snippets.grid": 2}, {"embed@snippets"}),
    ({"views.global.resize": "squash"}, {"embed@global"}),
    ({"clip.model": "other"}, {"embed_text", "embed@global", "embed@snippets"}),
    ({"clip.precision": "bf16"}, {"embed_text", "embed@global", "embed@snippets"}),
    ({"train.recipe.learning_rate": 0.5}, stages("train", TRAINED)),
    ({"train.student.backbone": "resnet34"}, stages("train", TRAINED)),
    ({"train.cdul.step": 0.5}, {"train@cdul"}),
    ({"evaluate.threshold": 0.4}, stages("evaluate", METHODS)),
    ({"scenes.seed": 1}, {"generate"}),
    ({"pretrain_clip.seed": 1}, {"pretrain_clip"}),
]


def test_the_first_run_runs_everything_and_the_next_nothing(project: Project) -> None:
    assert project.ran == EVERYTHING
    assert project.repro() == set()


@pytest.mark.parametrize(("changes", "expected"), RERUNS_FROM, ids=[next(iter(row[0])) for row in RERUNS_FROM])
def test_a_change_reruns_from(project: Project, changes: dict[str, Any], expected: set[str]) -> None:
    project.set(changes)
    assert project.changed() == expected


def test_how_the_machine_computes_reruns_nothing(project: Project) -> None:
    (project.folder / "compute.yaml").write_text("processes: 2\nworkers: 3\nthreads: 1\ndevice: cpu\n")
    assert project.changed() == set()
    (project.folder / "compute.yaml").unlink()


def test_an_experiment_with_another_threshold_runs_the_labels_and_what_follows(project: Project) -> None:
    output = project.run("dvc", "exp", "run", "-S", "pseudo_label.cdul.threshold=0.3").stdout
    for name in EVERYTHING:
        follows = name.endswith("@cdul") or (name.endswith("@teacher_views") and name != "embed")
        assert (f"Running stage '{name}'" in output) == follows, name


def test_another_grid_leaves_the_global_branch_alone(project: Project) -> None:
    project.set({"views.snippets.grid": 2})
    ran = project.repro()
    assert {"embed@snippets", "similarity", "pseudo_label@cdul", "train@cdul", "evaluate@teacher_views"} <= ran
    assert ran.isdisjoint({"embed@global", "embed_text", "train@global", "train@supervised", "evaluate@teacher"})


def test_another_threshold_of_the_metrics_runs_the_evaluation_alone(project: Project) -> None:
    project.set({"evaluate.threshold": 0.4})
    assert project.repro() == stages("evaluate", METHODS)
