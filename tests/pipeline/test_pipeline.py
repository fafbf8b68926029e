"""The pipeline as its users meet it: bytes, ground truth, own images, real photographs, bad parameters."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import REAL_PYTHON, ROOT, Project
from PIL import Image

from clipdistill import store
from clipdistill.datasets.table import ImageTable, read_classes, read_labels, write_labels
from clipdistill.students import student_yaml

pytestmark = pytest.mark.slow

PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "voc2012_subset"


def manifest(folder: Path) -> str:
    return (folder / store.MANIFEST).read_text()


def let_go(project: Project) -> None:
    """Remove what is kept of embeddings, so that they are computed again."""
    shutil.rmtree(project.folder / ".work" / "embed", ignore_errors=True)


def test_metrics_have_the_stated_keys(finished: Project) -> None:
    labels = finished.json("metrics/labels/cdul.json")["train"]
    assert list(labels) == ["global_mAP", "aggregate_mAP", "final_mAP"]
    for method in ("teacher", "teacher_views", "teacher_dense", "cdul", "dense", "ccd", "global", "supervised"):
        val = finished.json(f"metrics/{method}.json")["val"]
        assert {"mAP", "CP", "CR", "CF1", "OP", "OR", "OF1", "top3"} <= set(val)
        assert 0 <= val["mAP"] <= 100
        assert ("own" in val) == (not method.startswith("teacher"))
        assert all(set(val[name]) == {"CF1", "OF1"} for name in ("own", "oracle") if name in val)
    assert {"initial_mAP", "refined_mAP"} <= set(finished.json("metrics/train/cdul.json")["train"])
    chosen = finished.json("metrics/ccd.json")["val"]
    assert {"epoch", "last_mAP", "last_epoch", "oracle_mAP", "oracle_epoch"} <= set(chosen)
    assert (chosen["last_epoch"], chosen["oracle_uses_labels"]) == (3, True)
    assert chosen["oracle_mAP"] >= max(chosen["mAP"], chosen["last_mAP"])
    rounds = finished.json("metrics/labels/ccd.json")["train"]
    assert list(rounds) == ["initial_mAP", "refined_mAP", "round1_mAP", "round2_mAP"]
    opened = finished.json("metrics/mkt.json")
    assert set(opened) == {"zsl", "gzsl", "teacher", "teacher_global", "untuned", "trained_on"}
    assert opened["trained_on"] == {"labels": 72, "of_these": 72}
    for figures in (opened, opened["teacher"], opened["teacher_global"], opened["untuned"]):
        assert {"mAP", "P_3", "R_3", "F1_3", "P_5", "R_5", "F1_5"} <= set(figures["zsl"]) & set(figures["gzsl"])
    pictures = sorted((finished.folder / "metrics" / "ccd_views").iterdir())
    assert len(pictures) == 8
    assert Image.open(pictures[0]).width == 1200


def test_dvc_compares_the_figures_of_a_method(project: Project) -> None:
    project.set({"evaluate.threshold": 0.1})
    project.repro("evaluate@cdul")
    assert "val.CR" in project.run("dvc", "metrics", "diff", "--targets", "metrics/cdul.json").stdout
    plots = json.loads(project.run("dvc", "plots", "show", "--json", "-o", str(project.folder / "plots")).stdout)
    assert not plots.get("errors")
    shutil.rmtree(project.folder / "plots", ignore_errors=True)


def test_one_and_two_processes_embed_the_same_bytes(project: Project) -> None:
    out = project.folder / "cache" / "scenes" / "train" / "snippets.zarr"
    before = manifest(out)
    for processes in ("1", "2"):
        let_go(project)
        project.run("stages/run", "embed", "snippets", CLIPDISTILL_PROCESSES=processes, **REAL_PYTHON)
        assert manifest(out) == before


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_together(project: Project, commands: list[tuple[list[str], dict[str, str]]]) -> None:
    """Run commands side by side, as machines would, and see that all end well."""
    with ThreadPoolExecutor(len(commands)) as pool:
        for done in [pool.submit(project.run, *words, **variables) for words, variables in commands]:
            done.result()


def torchrun_agents(port: int) -> list[tuple[list[str], dict[str, str]]]:
    options = f"--nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-id=test --rdzv-endpoint=127.0.0.1:{port}"
    words = ["python", "-m", "torch.distributed.run", *options.split(), "stages/embed.py", "snippets"]
    return [(words, {"PYTHONPATH": "src"})] * 2


def own_agents(port: int) -> list[tuple[list[str], dict[str, str]]]:
    place = {"CLIPDISTILL_NODES": "2", "CLIPDISTILL_RENDEZVOUS": f"127.0.0.1:{port}"}
    return [(["stages/run", "embed", "snippets"], place | {"CLIPDISTILL_NODE_RANK": str(rank)}) for rank in (1, 0)]


@pytest.mark.parametrize("agents", [torchrun_agents, own_agents])
def test_two_machines_embed_the_same_bytes_as_one(
    project: Project, agents: Callable[[int], list[tuple[list[str], dict[str, str]]]]
) -> None:
    out = project.folder / "cache" / "scenes" / "train" / "snippets.zarr"
    before = manifest(out)
    shutil.rmtree(out)
    let_go(project)
    run_together(project, agents(free_port()))
    assert manifest(out) == before


def test_shards_that_others_filled_are_only_sealed(project: Project) -> None:
    out = project.folder / "cache" / "scenes" / "train" / "snippets.zarr"
    before = manifest(out)
    let_go(project)
    for rank in ("1", "0"):
        project.run("stages/run", "fill", "snippets", RANK=rank, WORLD_SIZE="2")
    images = project.folder / "data" / "raw" / "scenes" / "JPEGImages"
    hidden = images.rename(images.with_suffix(".away"))
    project.run("stages/run", "embed", "snippets")
    hidden.rename(images)
    assert manifest(out) == before


def test_a_round_in_two_processes_gives_whole_artifacts(project: Project) -> None:
    folder = project.folder / "cache" / "scenes" / "ccd" / "2"
    shutil.rmtree(folder)
    project.run("stages/run", "round", "2", CLIPDISTILL_PROCESSES="2")
    assert store.read_group(folder / "labels.zarr").shape("raw") == (3, 40, 12)
    assert len(store.read_group(folder / "cam.zarr").read("embedding")) == 40 * 6
    assert (folder / "student" / "student.yaml").is_file()


def test_a_round_killed_after_its_training_goes_on_from_there(project: Project) -> None:
    """The embedder finds no table of its views, so the round fails after the student is whole."""
    folder = project.folder / "cache" / "scenes" / "ccd" / "2"
    before = (folder / "student" / "student.safetensors").read_bytes(), manifest(folder / "labels.zarr")
    shutil.rmtree(folder)
    weights = project.folder / "cache" / "teachers" / "scenes.safetensors"
    kept = weights.rename(weights.with_suffix(".away"))
    assert project.run("stages/run", "round", "2", check=False).returncode > 0
    assert not folder.exists()
    (student,) = (project.folder / ".work" / "round-2").glob("*/student/student.safetensors")
    made = student.stat().st_mtime_ns
    kept.rename(weights)
    project.run("stages/run", "round", "2")
    assert (folder / "student" / "student.safetensors").stat().st_mtime_ns == made
    assert ((folder / "student" / "student.safetensors").read_bytes(), manifest(folder / "labels.zarr")) == before


def test_students_do_not_see_the_ground_truth(project: Project) -> None:
    """All labels become noise; only reports may change."""
    data = project.folder / "data" / "scenes"
    student = project.folder / "cache" / "scenes" / "students" / "cdul" / "student.safetensors"
    first_labels = project.folder / "cache" / "scenes" / "train" / "labels" / "cdul.zarr"
    before = student.read_bytes(), manifest(first_labels), project.json("metrics/train/cdul.json")
    classes = read_classes(data / "classes.yaml")
    for split in ("train", "val"):
        table = ImageTable.load(data / split / "images.parquet")
        noise = np.random.default_rng(3).integers(0, 2, (len(table), len(classes)), dtype=np.int8)
        assert (noise != read_labels(data / split / "labels.zarr", table)).any()
        write_labels(data / split / "labels.zarr", noise, table, classes)
    project.run("stages/run", "pseudo_label", "cdul", **REAL_PYTHON)
    project.run("stages/run", "train", "cdul", **REAL_PYTHON)
    assert student.read_bytes() == before[0]
    assert manifest(first_labels) == before[1]
    assert project.json("metrics/train/cdul.json") != before[2]


def test_a_model_folder_has_the_student_and_its_figures(finished: Project) -> None:
    cache = finished.folder / "cache" / "scenes"
    trained, model = (cache / kind / "ccd" for kind in ("students", "models"))
    assert {path.name for path in model.iterdir()} == {"student.safetensors", "student.yaml", "README.md"}
    assert (model / "student.safetensors").read_bytes() == (trained / "student.safetensors").read_bytes()
    before, card = student_yaml.read(trained), student_yaml.read(model)
    assert (before.about, before.evaluation) == ({}, None)
    assert card.model_copy(update={"about": {}, "evaluation": None}) == before
    measured = finished.json("metrics/ccd.json")["val"]
    assert card.evaluation is not None
    assert card.evaluation.images == 20
    assert card.evaluation.figures == {
        "mAP": measured["mAP"],
        "CF1": measured["own"]["CF1"],
        "OF1": measured["own"]["OF1"],
        "CF1 at 0.5": measured["CF1"],
        "OF1 at 0.5": measured["OF1"],
    }
    assert f"| mAP | {measured['mAP']:.2f} |" in (model / "README.md").read_text()


def test_own_images_without_labels_train_a_student(project: Project) -> None:
    folder = project.folder / "own"
    shutil.copytree(project.folder / "data" / "raw" / "scenes" / "JPEGImages", folder / "holiday pictures")
    (folder / "classes.txt").write_text("fish\ncar\numbrella\n")
    changes = {"name": "own", "reader": "folder", "root": "own"}
    project.set({f"dataset.{key}": value for key, value in changes.items()})
    # With the maps of a residual network, which CCD makes finer than those it was trained on.
    project.set({"train.student.backbone": "resnet18", "ccd.localize.output_stride": 8})
    open_model = "stages/mkt/dvc.yaml:model@mkt"
    ran = project.repro("model@cdul", "evaluate@ccd", "model@supervised", "pseudo_label@ccd", open_model)
    assert "generate" not in ran
    models = project.folder / "cache" / "own" / "models"
    assert (models / "cdul" / "student.safetensors").is_file()
    assert "no ground truth for the split val of own" in (models / "cdul" / "README.md").read_text()
    for untrained in ("supervised", "mkt"):
        assert [path.name for path in (models / untrained).iterdir()] == ["untrained.txt"]
    assert project.json("metrics/mkt.json") == {}
    project.set({"mkt.supervision": "cdul"})
    project.repro(open_model)
    photo = next((folder / "holiday pictures").iterdir())
    (folder / "words.txt").write_text("red fish\ncup\n")
    asked = project.run(
        "clipdistill", "predict", str(models / "mkt"), str(photo), "--labels", "own/words.txt", "--top-k=2"
    )
    assert {line.split(",")[1] for line in asked.stdout.splitlines()[1:]} == {"red fish", "cup"}
    held_out = project.json("metrics/format.json")["val"]["images"]
    for method in ("cdul", "supervised"):
        assert project.json(f"metrics/{method}.json") == {"val": {"images": held_out, "labelled": 0}}
    # Three classes, of which the two likeliest an image would be most; the rule saw pseudo labels alone.
    assert project.json("metrics/ccd.json") == {"val": {"images": held_out, "labelled": 0, "epoch": 3}}
    assert project.json("metrics/labels/ccd.json")["train"]["refined_mAP"] is None
    assert project.json("metrics/labels/cdul.json")["train"]["final_mAP"] is None


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs of VOC 2012 are not here")
def test_real_photographs_from_files_to_metrics(project: Project) -> None:
    changes = {"name": "voc-subset", "root": str(PHOTOGRAPHS), "open_vocabulary": "voc-15-5"}
    project.set({f"dataset.{key}": value for key, value in changes.items()})
    project.repro("evaluate@cdul", "evaluate@teacher")
    report = project.json("metrics/format.json")
    assert (report["train"]["images"], report["val"]["images"]) == (70, 40)
    assert report["train"]["positives"] + report["val"]["positives"] == 160
    assert 0 < project.json("metrics/cdul.json")["val"]["mAP"] < 100


@pytest.mark.parametrize(
    ("changes", "stage", "message"),
    [
        ({"dataset.typo": 1}, "format", "dataset.typo: unknown key"),
        ({"dataset.root": "nowhere"}, "format", "nowhere"),
        ({"clip.model": "RN50"}, "embed_text", "clip.model is 'RN50'"),
        ({"train.student.backbone": "resnet19"}, "train global", "resnet19"),
        ({"train.student.output_stride": 16, "train.student.backbone": "vgg11"}, "train global", "output_stride"),
    ],
)
def test_bad_parameters_are_one_message_without_a_traceback(
    configured: Project, changes: dict[str, object], stage: str, message: str
) -> None:
    configured.set(changes)
    result = configured.run("stages/run", *stage.split(), check=False)
    assert 0 < result.returncode < 10
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_image_that_changed_since_the_table_stops_the_embedding(project: Project) -> None:
    victim = project.folder / "data" / "raw" / "scenes" / "JPEGImages" / "scene_000003.jpg"
    victim.unlink()
    Image.new("RGB", (96, 96)).save(victim)
    project.set({"views.snippets.grid": 2})
    result = project.run("stages/run", "embed", "snippets", check=False)
    assert "scene_000003.jpg: its bytes have changed" in result.stderr
