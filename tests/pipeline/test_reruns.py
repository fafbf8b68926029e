"""Which change reruns what: the table of docs/design.md, on a real pipeline."""

from __future__ import annotations

import re
from typing import Any

import pytest
from conftest import Project

pytestmark = pytest.mark.slow

TRAINED = {"cdul", "dense", "ccd", "global", "supervised"}
TEACHERS = {"teacher", "teacher_views", "teacher_dense"}
METHODS = TRAINED | TEACHERS


def stages(name: str, items: set[str]) -> set[str]:
    return {f"{name}@{item}" for item in items}


EVERYTHING = {"generate", "pretrain_clip", "format", "embed_text", "embed@global", "embed@snippets", "similarity"}
EVERYTHING |= {"embed@dense", "similarity@dense"}
EVERYTHING |= {"plan@ccd", "warmup@ccd", "localize@ccd", "embed@cam", "refine@ccd", "show_views"}
EVERYTHING |= stages("round", {"2", "3", "4"})
EVERYTHING |= (
    stages("pseudo_label", {"cdul", "dense", "ccd", "global"}) | stages("train", TRAINED) | stages("predict", TRAINED)
)
EVERYTHING |= stages("predict_teacher", TEACHERS) | stages("evaluate", METHODS) | {"report", "summary"}
EVERYTHING |= stages("model", TRAINED)

MKT = {"seen@mkt", "train@mkt", "tune_prompt@mkt", "predict@mkt", "evaluate@mkt", "model@mkt"}
EVERYTHING |= MKT

TTD = {"tags", "train@ttd", "evaluate_tags", "segment", "evaluate@ttd"}
EVERYTHING |= TTD | {"generate_tagged"}

ROUNDS = stages("round", {"2", "3", "4"})

AGGREGATED = {"pseudo_label@cdul", "pseudo_label@dense", "seen@mkt"}
AGGREGATED |= {"predict_teacher@teacher_views", "predict_teacher@teacher_dense"}

# Beside the report, which shows every parameter.
RERUNS_FROM: list[tuple[dict[str, Any], set[str]]] = [
    ({"pseudo_label.cdul.threshold": 0.3}, AGGREGATED),
    ({"pseudo_label.cdul.weight": 0.5}, AGGREGATED),
    (
        {"pseudo_label.temperature": 0.02},
        stages("pseudo_label", {"cdul", "dense", "ccd", "global"})
        | stages("predict_teacher", TEACHERS)
        | {"refine@ccd", "show_views", "seen@mkt"}
        | ROUNDS,
    ),
    (
        {"pseudo_label.standardise": "both"},
        stages("pseudo_label", {"cdul", "dense", "ccd", "global"}) | stages("predict_teacher", TEACHERS) | {"seen@mkt"},
    ),
    ({"prompts.templates": ["a {}"]}, {"embed_text", "segment"}),
    ({"dataset.prompt_names": {"fish": "small fish"}}, {"format"}),
    ({"dataset.open_vocabulary": "classes"}, {"format"}),
    ({"views.snippets.grid": 2}, {"embed@snippets"}),
    ({"views.dense.image_size": 96}, {"embed@dense"}),
    ({"views.cam.resize": "open_clip"}, {"embed@cam"} | ROUNDS),
    ({"views.global.resize": "squash"}, {"embed@global"}),
    (
        {"clip.model": "other"},
        {"embed_text", "embed@global", "embed@snippets", "embed@dense", "embed@cam", "train@mkt", "predict@mkt"}
        | {"train@ttd", "evaluate_tags", "segment"}
        | ROUNDS
        | stages("model", TRAINED | {"mkt"}),
    ),
    (
        {"clip.adapter": "cache/scenes/ttd/adapter"},
        {"embed_text", "embed@global", "embed@snippets", "embed@dense", "embed@cam", "train@mkt", "predict@mkt"}
        | ROUNDS
        | stages("model", TRAINED | {"mkt"}),
    ),
    (
        {"clip.precision": "bf16"},
        {"embed_text", "embed@global", "embed@snippets", "embed@dense", "embed@cam", "segment"} | ROUNDS,
    ),
    ({"train.recipe.learning_rate": 0.5}, stages("train", TRAINED) | {"warmup@ccd"} | ROUNDS),
    ({"train.student.backbone": "resnet34"}, stages("train", TRAINED) | {"warmup@ccd"} | ROUNDS),
    ({"train.cdul.step": 0.5}, {"train@cdul", "train@dense"}),
    ({"ccd.ratio": 0.5}, {"refine@ccd"} | ROUNDS),
    ({"ccd.localize.margin": 0.1}, {"localize@ccd", "show_views"} | ROUNDS),
    ({"ccd.initial": "cdul"}, {"warmup@ccd"}),
    ({"ccd.update_rounds": 1}, {"plan@ccd"}),
    ({"ccd.train.warmup_epochs": 2}, {"warmup@ccd", "train@ccd"}),
    ({"evaluate.threshold": 0.4}, stages("evaluate", METHODS) | stages("model", TRAINED)),
    ({"model_card.license": "mit"}, stages("model", TRAINED | {"mkt"})),
    ({"mkt.k": 8}, {"train@mkt"}),
    ({"mkt.tune.epochs": 2}, {"tune_prompt@mkt"}),
    ({"mkt.top_k": [1]}, {"evaluate@mkt"}),
    ({"mkt.supervision": "cdul"}, {"train@mkt", "tune_prompt@mkt"}),
    ({"ttd.threshold": 0.6}, {"train@ttd", "evaluate_tags"}),
    ({"ttd.lora.rank": 8}, {"train@ttd"}),
    ({"ttd.captions.drop_function_words": False}, {"tags"}),
    ({"ttd.segment.pamr": 0}, {"segment"}),
    ({"ttd.slope": 8.0}, {"train@ttd", "evaluate_tags", "segment"}),
    ({"scenes.seed": 1}, {"generate", "generate_tagged"}),
    ({"tagged_scenes.val_images": 4}, {"generate_tagged"}),
    ({"pretrain_clip.seed": 1}, {"pretrain_clip"}),
]


def test_the_first_run_runs_everything_and_the_next_nothing(finished: Project) -> None:
    assert finished.ran == EVERYTHING
    assert finished.repro() == set()


@pytest.mark.parametrize(("changes", "expected"), RERUNS_FROM, ids=[next(iter(row[0])) for row in RERUNS_FROM])
def test_a_change_reruns_from(configured: Project, changes: dict[str, Any], expected: set[str]) -> None:
    configured.set(changes)
    assert configured.changed() == expected | {"report"}


def test_how_the_machine_computes_reruns_nothing(configured: Project) -> None:
    (configured.folder / "compute.yaml").write_text("processes: 2\nworkers: 3\nthreads: 1\ndevice: cpu\n")
    assert configured.changed() == set()
    (configured.folder / "compute.yaml").unlink()


def test_an_experiment_with_another_threshold_runs_the_labels_and_what_follows(project: Project) -> None:
    output = project.run("dvc", "exp", "run", "-S", "pseudo_label.cdul.threshold=0.3").stdout
    ran = set(re.findall(r"^Running stage '(?:.*:)?([^']+)':", output, flags=re.MULTILINE))
    for name in EVERYTHING:
        aggregated = name.endswith(("@cdul", "@teacher_views", "@dense", "@teacher_dense"))
        follows = name in ("report", "summary", "seen@mkt") or (
            aggregated and not name.startswith(("embed", "similarity"))
        )
        assert (name in ran) == follows, name


def test_an_experiment_with_another_k_runs_mkt_alone(project: Project) -> None:
    output = project.run("dvc", "exp", "run", "-S", "mkt.k=8").stdout
    ran = set(re.findall(r"^Running stage '(?:.*:)?([^']+)':", output, flags=re.MULTILINE))
    assert ran == (MKT - {"seen@mkt"}) | {"report", "summary"}
    project.run("git", "reset", "--quiet", "--hard")
    project.run("dvc", "checkout", "--quiet", "--force")


def test_an_experiment_with_another_threshold_of_words_trains_the_adapter_anew(project: Project) -> None:
    output = project.run("dvc", "exp", "run", "-S", "ttd.threshold=0.6").stdout
    ran = set(re.findall(r"^Running stage '(?:.*:)?([^']+)':", output, flags=re.MULTILINE))
    assert ran == (TTD - {"tags"}) | {"report", "summary"}
    project.run("git", "reset", "--quiet", "--hard")
    project.run("dvc", "checkout", "--quiet", "--force")


CLIP_AND_WARM_UP = {"warmup@ccd", "localize@ccd", "embed@global", "embed@snippets", "embed@cam", "embed_text"}


def test_another_ratio_runs_the_update_and_neither_the_warm_up_nor_clip(project: Project) -> None:
    project.set({"ccd.update_rounds": 1})
    assert CLIP_AND_WARM_UP.isdisjoint(project.repro("evaluate@ccd"))
    project.commit()
    output = project.run("dvc", "exp", "run", "-S", "ccd.ratio=0.5").stdout
    ran = set(re.findall(r"^Running stage '(?:.*:)?([^']+)':", output, flags=re.MULTILINE))
    assert {"refine@ccd", "train@ccd", "evaluate@ccd"} <= ran
    assert CLIP_AND_WARM_UP.isdisjoint(ran)
    project.run("git", "reset", "--quiet", "--hard", "HEAD~1")


def test_one_round_more_runs_that_round_and_what_follows(project: Project) -> None:
    project.set({"ccd.update_rounds": 3})
    ran = project.repro("evaluate@ccd", "pseudo_label@ccd")
    assert {"round@3", "train@ccd"} <= ran
    assert (CLIP_AND_WARM_UP | {"refine@ccd", "round@2"}).isdisjoint(ran)
    assert list(project.json("metrics/labels/ccd.json")["train"]) == [
        "initial_mAP",
        "refined_mAP",
        "round1_mAP",
        "round2_mAP",
        "round3_mAP",
    ]


def test_another_grid_leaves_the_global_branch_alone(project: Project) -> None:
    project.set({"views.snippets.grid": 2})
    ran = project.repro()
    assert {"embed@snippets", "similarity", "pseudo_label@cdul", "train@cdul", "evaluate@teacher_views"} <= ran
    assert ran.isdisjoint({"embed@global", "embed_text", "train@global", "train@supervised", "evaluate@teacher"})


def test_another_threshold_of_the_metrics_trains_nothing(project: Project) -> None:
    project.set({"evaluate.threshold": 0.4})
    assert project.repro() == stages("evaluate", METHODS) | stages("model", TRAINED) | {"report", "summary"}
