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
from clipdistill.datasets.table import ImageTable, read_classes
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.students import model_folder
from clipdistill.training.ccd_labels import CcdLabels
from clipdistill.training.ccd_refine import refine
from clipdistill.training.localize import point
from clipdistill.training.regime import Regime
from clipdistill.training.train import Outputs, train_student
from clipdistill.training.weighted_labels import WeightedLabels
from clipdistill.work import code_digest, work_root

LABELS, STUDENT, VIEWS, EMBEDDINGS = "labels.zarr", "student", "views.zarr", "cam.zarr"

# What a half-finished round must not outlive.
_CODE = ["training", "students", "methods", "evaluation", "clip", "datasets", "store.py", "work.py"]

# Each training draws its own order and augmentation: one seed would make all of them go through the same epochs.
_SEED_STEP = 1_000_003


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
    before, out = paths.ccd(update - 1), paths.ccd(update)
    if not json.loads(paths.ccd_plan(update).read_text(encoding="utf-8"))["run"]:
        if distributed.is_leader():
            shutil.copytree(before / LABELS, out / LABELS, dirs_exist_ok=True)
            shutil.copytree(before / STUDENT, out / STUDENT, dirs_exist_ok=True)
        return
    folder = work_root() / f"round-{update}" / _identity(before, paths, params)
    views, embeddings = folder / VIEWS, folder / EMBEDDINGS
    if not distributed.launch_where_several(command, compute):
        with distributed.process_group(compute.torch_device()):
            if not (folder / STUDENT / model_folder.CARD).exists():
                _train(update, before, folder / STUDENT, params, compute)
            if not views.exists():
                point(folder / STUDENT, views, params, compute)
    if not embeddings.exists():
        request = clip_run.cam_request(params, views, embeddings)
        clip_run.embed_views("cam", [request], params, [*embedder, "cam", str(views), str(embeddings)])
    if distributed.is_leader():
        refine(before / LABELS, embeddings, folder / LABELS, update, params)
        store.move_into_place(folder, out)


def _identity(before: Path, paths: Paths, params: Params) -> str:
    """What a half-finished round depends on."""
    sections = [
        params.ccd.model_dump(include={"ratio", "floor", "localize"}),
        params.ccd.train.model_dump(include={"round_epochs", "boost"}),
        params.train.model_dump(include={"student", "recipe"}),
        params.pseudo_label.temperature,
        *(part.model_dump() for part in (params.clip, params.views.cam)),
    ]
    files = [before / LABELS / store.MANIFEST, before / STUDENT / model_folder.CARD, paths.text / store.MANIFEST]
    return store.fingerprint([sections, [store.file_sha256(file) for file in files], code_digest(_CODE)])[:32]


def _train(update: int, before: Path, out: Path, params: Params, compute: distributed.Compute) -> None:
    """Go on training the student on the updated labels."""
    paths, recipe = Paths(params.dataset.name), params.train.recipe
    table = ImageTable.load(paths.table("train"))
    labels = CcdLabels.read(before / LABELS, table)
    changes = {"epochs": params.ccd.train.round_epochs, "seed": recipe.seed + update * _SEED_STEP}
    train_student(
        table,
        labels.labels.numpy(),
        [item.name for item in read_classes(paths.classes)],
        student=params.train.student,
        recipe=recipe.model_copy(update=changes),
        supervision=WeightedLabels(labels.weight),
        outputs=Outputs(out),
        regime=Regime(start=before / STUDENT, boost=params.ccd.train.boost),
        stage="round/ccd",
        compute=compute,
    )
