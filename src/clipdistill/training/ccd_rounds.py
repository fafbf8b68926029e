"""CCD's rounds: a student learns, points at places, CLIP looks there, and the labels are updated.

The first round is four stages, so that another `ccd.ratio` runs neither a training nor CLIP again. Each later round is
one: all of it depends on the labels of the round before.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from clipdistill import distributed, store
from clipdistill.clip import run as clip_run
from clipdistill.clip.similarity import cosines
from clipdistill.datasets.table import ImageTable, read_classes
from clipdistill.methods import cdul
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.students import model_folder
from clipdistill.training.ccd_labels import CcdLabels
from clipdistill.training.localize import localize
from clipdistill.training.pseudo_label import resolve_temperature
from clipdistill.training.regime import Regime
from clipdistill.training.supervision import FixedLabels
from clipdistill.training.train import Outputs, train_student
from clipdistill.training.weighted_labels import WeightedLabels
from clipdistill.work import code_digest, work_root

logger = logging.getLogger(__name__)

LABELS, STUDENT, VIEWS, EMBEDDINGS = "labels.zarr", "student", "views.zarr", "cam.zarr"

# What a half-finished round must not outlive.
_CODE = ["training", "students", "methods", "evaluation", "clip", "datasets", "store.py", "work.py"]


def warm_up(params: Params, command: list[str]) -> None:
    """Debias the initial labels, and train the student that points in the first round.

    Args:
        params: all parameters.
        command: the stage's script and its arguments, started once a process where there are several.
    """
    paths = Paths(params.dataset.name)
    out, table, compute = paths.ccd(0), ImageTable.load(paths.table("train")), distributed.Compute.load()
    if distributed.is_leader():
        _initial_labels(params, paths, table).write(out / LABELS, _provenance(params, table, 0))
    if not distributed.launch_where_several(command, compute):
        with distributed.process_group(torch.device("cpu")):
            distributed.barrier()
        labels = CcdLabels.read(out / LABELS, table)
        recipe = params.train.recipe.model_copy(update={"epochs": params.ccd.train.warmup_epochs})
        train_student(
            table,
            labels.labels.numpy(),
            [item.name for item in read_classes(paths.classes)],
            student=params.train.student,
            recipe=recipe,
            supervision=FixedLabels(),
            outputs=Outputs(out / STUDENT),
            regime=Regime(boost=params.ccd.train.boost),
            stage="warmup/ccd",
            compute=compute,
        )


def _initial_labels(params: Params, paths: Paths, table: ImageTable) -> CcdLabels:
    expected = {"table": table.fingerprint}
    first, whole = (
        torch.from_numpy(store.read_group(paths.labels(name), expected).read("labels"))
        for name in (params.ccd.initial, "global")
    )
    return CcdLabels.initial(first, whole, params.ccd)


def point(student: Path, out: Path, params: Params) -> None:
    """Write the view table of the places that a student points at in the training images.

    Under torchrun all processes call this together.
    """
    compute = distributed.Compute.load()
    paths = Paths(params.dataset.name)
    table = ImageTable.load(paths.table("train"))
    with distributed.process_group(compute.torch_device()):
        views = localize(student, table, params.ccd.localize, compute)
        if distributed.rank() == 0:
            provenance = {"student": model_folder.read_card(student).sha256, **params.ccd.localize.model_dump()}
            views.write(out, {"table": table.fingerprint, **provenance})
            logger.info(
                "%d views of %d images, of classes from probability %.3f on",
                len(views.box),
                len(table),
                views.threshold,
            )
        distributed.barrier()


def refine(before: Path, embeddings: Path, out: Path, update: int, params: Params) -> None:
    """Update labels by what CLIP says of the views.

    Args:
        before: labels.
        embeddings: of the views.
        out: the new labels.
        update: number of this update, from 1.
        params: all parameters.
    """
    paths = Paths(params.dataset.name)
    table = ImageTable.load(paths.table("train"))
    scores, offset = view_scores(paths.text, embeddings, table, params)
    labels = CcdLabels.read(before, table).updated(scores, offset, params.ccd)
    labels.write(out, _provenance(params, table, update))


def view_scores(text: Path, embeddings: Path, table: ImageTable, params: Params) -> tuple[torch.Tensor, torch.Tensor]:
    """CLIP's scores of the views that were pointed at.

    Returns:
        float32 [V, C], rows that sum to 1, and the offsets int64 [N + 1].

    Raises:
        ArtifactError: embeddings of another table, or of another teacher than the text's.
    """
    classes = store.read_group(text)
    teacher = {key: classes.provenance[key] for key in ("model", "weights", "quick_gelu")}
    views = store.read_group(embeddings, {"table": table.fingerprint, **teacher})
    temperature = resolve_temperature(params.pseudo_label, classes.provenance)
    cosine = torch.from_numpy(cosines(views, torch.from_numpy(classes.read("embedding"))))
    return cdul.scores(cosine, temperature), torch.from_numpy(views.read("offset"))


def _provenance(params: Params, table: ImageTable, update: int) -> dict[str, Any]:
    used = params.ccd.model_dump(exclude={"localize", "update_rounds"})
    return {"table": table.fingerprint, "method": "ccd", "updates": update, **used}


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
            hand_on_student(before, out)
        return
    folder = work_root() / f"round-{update}" / _identity(before, paths, params)
    views, embeddings = folder / VIEWS, folder / EMBEDDINGS
    if not distributed.launch_where_several(command, compute):
        if not (folder / STUDENT / model_folder.CARD).exists():
            _train(before, folder / STUDENT, params, compute)
        if not views.exists():
            point(folder / STUDENT, views, params)
    if not embeddings.exists():
        request = clip_run.cam_request(params, views, embeddings)
        clip_run.embed_views("cam", [request], params, [*embedder, "cam", str(views), str(embeddings)])
    if distributed.is_leader():
        refine(before / LABELS, embeddings, folder / LABELS, update, params)
        store.move_into_place(folder, out)


def _identity(before: Path, paths: Paths, params: Params) -> str:
    """What a half-finished round depends on."""
    sections = [
        params.ccd.model_dump(exclude={"update_rounds"}),
        *(part.model_dump() for part in (params.train, params.clip, params.views.cam, params.pseudo_label)),
    ]
    files = [before / LABELS / store.MANIFEST, before / STUDENT / model_folder.CARD, paths.text / store.MANIFEST]
    return store.fingerprint([sections, [store.file_sha256(file) for file in files], code_digest(_CODE)])[:32]


def _train(before: Path, out: Path, params: Params, compute: distributed.Compute) -> None:
    """Go on training the student on the updated labels."""
    paths = Paths(params.dataset.name)
    table = ImageTable.load(paths.table("train"))
    labels = CcdLabels.read(before / LABELS, table)
    train_student(
        table,
        labels.labels.numpy(),
        [item.name for item in read_classes(paths.classes)],
        student=params.train.student,
        recipe=params.train.recipe.model_copy(update={"epochs": params.ccd.train.round_epochs}),
        supervision=WeightedLabels(labels.weight),
        outputs=Outputs(out),
        regime=updated_regime(params, before / STUDENT),
        stage="round/ccd",
        compute=compute,
    )


def updated_regime(params: Params, start: Path) -> Regime:
    """How a student is trained on labels that were updated, between two updates."""
    return Regime(start=start, boost=params.ccd.train.boost)


def hand_on_student(before: Path, out: Path) -> None:
    """Put the student that pointed beside the labels that came of it: the next training goes on from it."""
    shutil.copytree(before / STUDENT, out / STUDENT, dirs_exist_ok=True)
