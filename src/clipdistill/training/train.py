"""Train a student from a split's images and soft labels, and write it with what belongs to it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clipdistill import distributed, store
from clipdistill.datasets.table import ImageTable, read_classes
from clipdistill.errors import ArtifactError, DataError, ParamsError
from clipdistill.evaluation import thresholds
from clipdistill.params import Params, RecipeParams, StudentParams
from clipdistill.stage import Paths
from clipdistill.students import model_folder, student_yaml
from clipdistill.students.classifier import Student
from clipdistill.students.network import Network
from clipdistill.training import checkpoint
from clipdistill.training.design import ClassifierDesign
from clipdistill.training.loop import Machine, Task, Trainer, Truth
from clipdistill.training.regime import Regime
from clipdistill.training.supervision import Supervision
from clipdistill.work import code_digest, work_root

EPOCHS = "epochs.zarr"
"""Scores after each epoch, in the folder of a student that a stopping rule chose."""

SoftLabels = npt.NDArray[np.float32]

# Images of an update that are worth a process, where nobody has said how many processes there are to be.
_IMAGES_A_PROCESS = 8

# Trainings that go on from one another draw their own order and augmentation: one seed would make all of them go
# through the same epochs.
_SEED_STEP = 1_000_003

# What a checkpoint must not outlive: a killed run is not finished by other code.
_CODE = ["training", "students", "methods", "evaluation/metrics.py", "evaluation/thresholds.py"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the results go.

    Attributes:
        model: folder of the student.
        labels: artifact of the labels' states: `labels` float32 [U + 1, N, C], the first ones and those after each
            refinement, and `epoch` int64 [U + 1]; None: not written.
        curves: folder of the curves; None: not written.
        epochs: artifact of the evaluation images' scores: `scores` float32 [E, M, C], one matrix an epoch where a
            stopping rule chooses and there is ground truth (else E is 0), and `chosen` int64 [1], the epoch of the
            student that was kept, from 1; None: not written.
        thresholds: whether they are chosen for the student, which takes a pass over the images; those of one that is
            only gone on from are never asked for, and stay at 0.5.
    """

    model: Path
    labels: Path | None = None
    curves: Path | None = None
    epochs: Path | None = None
    thresholds: bool = True


def train_student(
    table: ImageTable,
    labels: SoftLabels,
    classes: list[str],
    *,
    student: StudentParams,
    recipe: RecipeParams,
    supervision: Supervision,
    outputs: Outputs,
    truth: Truth | None = None,
    regime: Regime | None = None,
    stage: str = "train",
    compute: distributed.Compute | None = None,
) -> None:
    """Train a student and write it.

    Under torchrun all processes call this together; rank 0 writes. A run that was killed goes on after its last
    finished epoch when it is called with the same arguments, and ends in the same bytes (on a CPU, with the same
    number of threads and processes).

    Args:
        table: N images.
        labels: float32 [N, C], first soft labels, in [0, 1]; with `FixedLabels` also -1, unknown.
        classes: C names.
        student: the network.
        recipe: its training.
        supervision: the method: `FixedLabels()` or `GradientAlignment(params)`.
        outputs: where the results go.
        truth: ground truth for the curves; it changes no byte of the student or of the labels.
        regime: where it begins, a second view, a stopping rule; None: none of it.
        stage: name of the work folder below `work.work_root()`.
        compute: device, threads; None: as `Compute.load` has them.

    Raises:
        ParamsError: the batch is too small for the network or the processes, or a parameter cannot be had.
        DataError: too few images.
        ArtifactError: the labels are not [N, C] in [0, 1], weights do not fit, or the disk refuses.
        ClipdistillError: the loss is no longer finite.
    """
    regime = regime or Regime()
    design = ClassifierDesign(student, regime.boost)
    _check_labels(labels, len(table), len(classes))
    task = Task(table, torch.from_numpy(labels), design, recipe, supervision, truth or Truth(), regime)

    def finish(trainer: Trainer, run: Run) -> None:
        chosen = trainer.choose_student()
        scored = trainer.score() if outputs.thresholds else None
        if distributed.rank() == 0:
            best = None
            if scored is not None:
                best = thresholds.without_truth(*(matrix.numpy() for matrix in scored)).tolist()
            _write(trainer.student, student, task, classes, run, outputs, chosen, best)

    run_task(task, classes, stage, finish, outputs.curves, compute)


@dataclass(frozen=True, slots=True)
class Run:
    """What belongs to a finished training.

    Attributes:
        provenance: of its results, JSON values.
        folder: its work folder, with the states of the labels.
    """

    provenance: dict[str, Any]
    folder: Path


def run_task(
    task: Task,
    classes: list[str],
    stage: str,
    finish: Callable[[Trainer, Run], None],
    curves: Path | None = None,
    compute: distributed.Compute | None = None,
) -> None:
    """Train what a task says, in a work folder that a killed run is taken up from.

    Under torchrun all processes call this together.

    Args:
        task: what is to be learnt.
        classes: names of the columns.
        stage: name of the work folder below `work.work_root()`.
        finish: called by all processes when the training is over, within the process group; rank 0 writes the results.
            Then the work folder goes.
        curves: folder of the curves; None: not written.
        compute: device, threads; None: as `Compute.load` has them.

    Raises:
        ParamsError, DataError, ClipdistillError: as `train_student`.
    """
    compute = compute or distributed.Compute.load()
    device = compute.torch_device()
    torch.set_num_threads(compute.thread_count())
    torch.backends.cudnn.deterministic = True
    dtype = distributed.resolve_precision(task.recipe.precision, device)
    machine = Machine(device, dtype, compute.worker_count(), compute.batch_size)
    _check_batches(len(task.table), task.recipe.batch_size)
    provenance = _provenance(task, dtype)
    identity = [provenance, classes, _truth_identity(task.truth), device.type, code_digest(_CODE)]
    folder = work_root() / stage / store.fingerprint(identity)[:32]
    with distributed.process_group(device):
        trainer = Trainer(task, machine, folder, curves)
        trainer.run()
        finish(trainer, Run(provenance, folder))
        if distributed.rank() == 0:
            shutil.rmtree(folder)
        distributed.barrier()


def launch(command: list[str], batch_size: int, compute: distributed.Compute) -> bool:
    """Run a stage that trains in several processes, where there are to be several.

    Args:
        command: the stage's script and its arguments.
        batch_size: images an update, over all processes.
        compute: processes; where it names none, there is one a GPU, but no more than batches of eight images fill.

    Returns:
        Whether it was done; if not, this process is to do the work itself.
    """
    most = compute.processes or max(1, batch_size // _IMAGES_A_PROCESS)
    return distributed.launch_where_several(command, compute, at_most=most)


def train_by_params(
    params: Params,
    table: ImageTable,
    labels: SoftLabels,
    *,
    supervision: Supervision,
    outputs: Outputs,
    stage: str,
    compute: distributed.Compute,
    truth: Truth | None = None,
    regime: Regime | None = None,
    epochs: int | None = None,
    turn: int = 0,
) -> None:
    """Train the pipeline's student: network, recipe and class names are those of the parameters.

    Args:
        params: all parameters.
        table: N images.
        labels: float32 [N, C], first soft labels.
        supervision: the method.
        outputs: where the results go.
        stage: name of the work folder.
        compute: device, threads.
        truth: ground truth for the curves.
        regime: where it begins, a second view, a stopping rule.
        epochs: in place of the recipe's.
        turn: number of this training among those that go on from one another, from 0; each has a seed of its own.
    """
    recipe = params.train.recipe
    changes = {"epochs": epochs or recipe.epochs, "seed": recipe.seed + turn * _SEED_STEP}
    train_student(
        table,
        labels,
        [item.name for item in read_classes(Paths(params.dataset.name).classes)],
        student=params.train.student,
        recipe=recipe.model_copy(update=changes),
        supervision=supervision,
        outputs=outputs,
        truth=truth,
        regime=regime,
        stage=stage,
        compute=compute,
    )


def stored_labels(method: str, paths: Paths, table: ImageTable) -> store.Group:
    """Labels that stage `pseudo_label` has written for `method`, global or cdul, of the classes as they are now.

    Raises:
        ArtifactError: they are missing, altered, or of another image table or class list, if only in its order.
    """
    path = paths.labels(method)
    group = store.read_group(path, {"table": table.fingerprint})
    found, wanted = group.provenance["text"]["classes"], [item.name for item in read_classes(paths.classes)]
    if found != wanted:
        raise ArtifactError(
            f"{path} was made for the classes {', '.join(found)}, but {paths.classes} has {', '.join(wanted)}: run "
            "`dvc repro` to make it anew"
        )
    return group


def _write(
    network: Network,
    student: StudentParams,
    task: Task,
    classes: list[str],
    run: Run,
    outputs: Outputs,
    chosen: int,
    best: list[float] | None,
) -> None:
    provenance, folder = run.provenance, run.folder
    every = range(1, task.recipe.epochs + 1)
    if outputs.labels is not None:
        epochs = [0, *(epoch for epoch in every if task.supervision.due(epoch))]
        arrays: dict[str, store.Array] = {
            "labels": checkpoint.read_states(folder, "labels", epochs),
            "epoch": np.array(epochs, dtype=np.int64),
        }
        store.write_group(outputs.labels, arrays, {"classes": classes, **provenance})
    if outputs.epochs is not None:
        truth, ruled = task.truth, task.regime.positive_at is not None
        known = ruled and truth.val is not None and truth.val_table is not None
        scores = checkpoint.read_states(folder, "scores", list(every)) if known else np.empty((0, 0, 0), np.float32)
        store.write_group(outputs.epochs, {"scores": scores, "chosen": np.array([chosen])}, provenance)
    learnt = {"rule": thresholds.F1_AND_GROUPS, "labels": "the labels that the student learned from"}
    calibration = None if best is None else learnt
    assert isinstance(network, Student)  # noqa: S101 - for the type checker: ClassifierDesign builds no other
    card = student_yaml.Card.of(network, student, task.supervision.head, classes, provenance, best, calibration)
    model_folder.save(outputs.model, network, card)


def _provenance(task: Task, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "table": task.table.fingerprint,
        "first_labels": hashlib.sha256(task.labels.numpy().tobytes()).hexdigest(),
        "supervision": task.supervision.identity,
        "student": task.design.identity,
        "recipe": task.recipe.model_dump(),
        "regime": task.regime.identity,
        "arithmetic": str(dtype).removeprefix("torch."),
    }


def _truth_identity(truth: Truth) -> list[str | None]:
    """What the curves depend on: a checkpoint holds rows of them, and must not mix two truths."""
    return [
        None if truth.train is None else hashlib.sha256(truth.train.tobytes()).hexdigest(),
        None if truth.val is None else hashlib.sha256(truth.val.tobytes()).hexdigest(),
        None if truth.val_table is None else truth.val_table.fingerprint,
    ]


def _check_labels(labels: SoftLabels, images: int, classes: int) -> None:
    if labels.shape != (images, classes) or labels.dtype != np.float32:
        raise ArtifactError(
            f"labels must be float32 [{images}, {classes}], one row an image and one column a class, but are "
            f"{labels.dtype} {list(labels.shape)}: run `dvc repro` to make them from this image table"
        )
    # Written so that NaN counts as outside.
    outside = ~(((labels >= 0) & (labels <= 1)) | (labels == -1))
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ArtifactError(
            f"labels must lie in [0, 1], or be -1 where unknown; row {row}, column {column} is {labels[row, column]}"
        )


def _check_batches(images: int, batch_size: int) -> None:
    world = distributed.world_size()
    if images < max(2, world):
        raise DataError(f"training needs at least {max(2, world)} images (2, and 1 a process), found {images}")
    if batch_size < world:
        raise ParamsError(
            f"train.recipe.batch_size: {batch_size} images an update cannot be shared by {world} processes"
        )
