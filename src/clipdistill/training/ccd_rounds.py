"""CCD's rounds after the first: a student learns, points at places, CLIP looks there, and the labels are updated.

The first round is four stages, so that another `ccd.ratio` runs neither a training nor CLIP again. Each later round is
one: all of it depends on the labels of the round before.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from clipdistill import distributed, store
from clipdistill.clip import run as clip_run
from clipdistill.datasets.table import ImageTable
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.students import student_yaml
from clipdistill.training.ccd_labels import CcdLabels
from clipdistill.training.ccd_refine import refine
from clipdistill.training.localize import point
from clipdistill.training.regime import Regime
from clipdistill.training.train import Outputs, launch, train_by_params
from clipdistill.training.weighted_labels import WeightedLabels
from clipdistill.work import code_digest, work_root

VIEWS, EMBEDDINGS = "views.zarr", "cam.zarr"

# What a half-finished round must not outlive.
_CODE = ["training", "students", "methods", "evaluation", "clip", "datasets", "layout.py", "store.py", "work.py"]


def later_round(update: int, params: Params, command: list[str], embedder: list[str]) -> None:
    """Run a round after the first: train on the labels, point, look, update.

    Its parts are kept in the work folder as they get ready: a killed round goes on after the last of them.

    Args:
        update: number of the round, from 2; where the plan leaves it out its result is that of the round before.
        params: all parameters.
        command: the stage's script and its arguments, started once a process where there are several.
        embedder: the embed stage's script.
    """
    paths, compute = Paths(params.dataset.name), distributed.Compute.load()
    before = [paths.ccd_labels(update - 1), paths.ccd_student(update - 1)]
    if not json.loads(paths.ccd_plan(update).read_text(encoding="utf-8"))["run"]:
        if distributed.is_leader():
            for part in before:
                shutil.copytree(part, paths.ccd(update) / part.name, dirs_exist_ok=True)
        return
    folder = work_root() / f"round-{update}" / _identity(update, paths, params)
    labels, student = (folder / part.name for part in before)
    views, embeddings = folder / VIEWS, folder / EMBEDDINGS
    if not launch(command, params.train.recipe.batch_size, compute):
        with distributed.process_group(compute.torch_device()):
            if not (student / student_yaml.FILE).exists():
                _train(update, student, params, compute)
            if not views.exists():
                point(student, views, params, compute)
    if not embeddings.exists():
        request = clip_run.cam_request(params, views, embeddings)
        clip_run.embed_views("cam", [request], params, [*embedder, "cam", str(views), str(embeddings)])
    if distributed.is_leader():
        refine(paths.ccd_labels(update - 1), embeddings, labels, update, params)
        store.move_into_place(folder, paths.ccd(update))


def _identity(update: int, paths: Paths, params: Params) -> str:
    """What a half-finished round depends on."""
    sections = [
        params.ccd.model_dump(include={"ratio", "floor", "localize"}),
        params.ccd.train.model_dump(include={"round_epochs", "boost"}),
        params.train.model_dump(include={"student", "recipe"}),
        params.pseudo_label.temperature,
        *(part.model_dump() for part in (params.clip, params.views.cam)),
    ]
    labels, student = paths.ccd_labels(update - 1), paths.ccd_student(update - 1)
    files = [labels / store.MANIFEST, student / student_yaml.FILE, paths.text / store.MANIFEST]
    return store.fingerprint([sections, [store.file_sha256(file) for file in files], code_digest(_CODE)])[:32]


def _train(update: int, out: Path, params: Params, compute: distributed.Compute) -> None:
    """Go on training the student on the updated labels."""
    paths = Paths(params.dataset.name)
    table = ImageTable.load(paths.table("train"))
    labels = CcdLabels.read(paths.ccd_labels(update - 1), table)
    train_by_params(
        params,
        table,
        labels.labels.numpy(),
        epochs=params.ccd.train.round_epochs,
        turn=update,
        supervision=WeightedLabels(labels.weight),
        outputs=Outputs(out, thresholds=False),
        regime=Regime(start=paths.ccd_student(update - 1), boost=params.ccd.train.boost),
        stage="round/ccd",
        compute=compute,
    )
