"""The training loop: one for all methods, in one process or in several, taken up again where it was killed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipdistill import distributed
from clipdistill.datasets.table import ImageTable, Labels
from clipdistill.errors import ClipdistillError, ParamsError
from clipdistill.evaluation.metrics import mean_average_precision
from clipdistill.methods import ccd
from clipdistill.params import RecipeParams
from clipdistill.students import classifier
from clipdistill.training import checkpoint, optimise
from clipdistill.training.augment import Augmentation, augmented, draw
from clipdistill.training.checkpoint import Checkpoint
from clipdistill.training.curves import Curves
from clipdistill.training.data import ImageSource, epoch_batches
from clipdistill.training.design import Design
from clipdistill.training.predict import autocast, predict
from clipdistill.training.progress import TrainingProgress
from clipdistill.training.regime import Regime, is_chosen, train_map
from clipdistill.training.supervision import Supervision
from clipdistill.training.synchronised_norm import synchronise

# Steps between looks at the loss: a look waits for the GPU.
_LOOK_EVERY = 16

_STREAM = 3


@dataclass(frozen=True, slots=True)
class Truth:
    """Ground truth for the curves. Nothing that is learnt or chosen depends on it.

    Attributes:
        train: int8 [N, C], of the training images; None: no such curve.
        val_table: M other images; None: no such curve.
        val: int8 [M, C], theirs.
    """

    train: Labels | None = None
    val_table: ImageTable | None = None
    val: Labels | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run computes.

    Attributes:
        device: of this process.
        dtype: of the matrix products.
        workers: decoding threads.
        batch_size: images of a pass without gradients; None: by default.
    """

    device: torch.device
    dtype: torch.dtype
    workers: int
    batch_size: int | None


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be learnt.

    Attributes:
        table: N images.
        labels: float32 [N, C], in [0, 1].
        design: the network.
        recipe: its training.
        supervision: the method.
        truth: for the curves.
        regime: beginning, second view, stopping rule.
    """

    table: ImageTable
    labels: Tensor
    design: Design
    recipe: RecipeParams
    supervision: Supervision
    truth: Truth
    regime: Regime


class Trainer:
    """A run: its network, optimiser and labels, from the last checkpoint or from the start.

    Args:
        task: what is to be learnt.
        machine: where.
        folder: of the checkpoint and of the labels' states.
        curves: folder of the curves; None: none are written.
    """

    def __init__(self, task: Task, machine: Machine, folder: Path, curves: Path | None) -> None:
        self._task, self._machine, self._folder = task, machine, folder
        with distributed.first_rank_first():
            self.student = task.design.build(task.labels.shape[1], task.recipe.seed)
        task.regime.begin(self.student)
        _require_batches_for_normalisation(self.student, task.recipe.batch_size)
        recipe = task.recipe
        jitters = [recipe.jitter, task.regime.jitter] if task.regime.agreement else [recipe.jitter]
        self._views = [Augmentation(recipe.flip, recipe.min_scale, jitter) for jitter in jitters]
        self._network = self._placed()
        self._rule = optimise.optimiser(self.student, task.recipe)
        self._labels = task.labels
        self._done, rows = 0, []
        self._chosen: dict[str, Tensor] | None = None
        if state := Checkpoint.read(folder):
            self.student.load_state_dict(state.student)
            self._rule.load_state_dict(state.optimiser)
            self._labels, self._done, rows, self._chosen = state.labels, state.epoch, state.curves, state.chosen
        elif distributed.rank() == 0:
            checkpoint.write_state(folder, "labels", 0, self._labels.numpy())
        # Nobody may write the first checkpoint before everybody has seen that there was none.
        distributed.barrier()
        self._curves = Curves(curves if distributed.rank() == 0 else None, rows)

    def _placed(self) -> nn.Module:
        device = self._machine.device
        self.student.to(device=device).to(memory_format=torch.channels_last)
        if distributed.world_size() == 1:
            return self.student
        synchronise(self.student, device)
        return DistributedDataParallel(self.student, device_ids=[device] if device.type == "cuda" else None)

    @cached_property
    def _images(self) -> ImageSource:
        return self._source(self._task.table)

    @cached_property
    def _val_images(self) -> ImageSource | None:
        table = self._task.truth.val_table
        return None if table is None else self._source(table)

    def _source(self, table: ImageTable) -> ImageSource:
        design, recipe, machine = self._task.design, self._task.recipe, self._machine
        pinned = machine.device.type == "cuda"
        return ImageSource(table, design.image_size, recipe.image_cache, machine.workers, pinned)

    def run(self) -> None:
        """Train through the last epoch.

        Raises:
            ClipdistillError: the loss or the scores are no longer finite.
        """
        epochs, images = self._task.recipe.epochs, len(self._task.table)
        with TrainingProgress(epochs, self._done, images, distributed.rank() == 0) as progress:
            for epoch in range(self._done + 1, epochs + 1):
                row = self._learn(epoch, progress)
                row |= self._refine(epoch)
                row |= self._compare(epoch)
                self._curves.add(row)
                if distributed.rank() == 0:
                    self._save(epoch)
                progress.epoch(epoch, row)
        self._curves.close()

    def _learn(self, epoch: int, progress: TrainingProgress) -> dict[str, float]:
        """One pass over the images: the student learns; the labels stay, unless the method moves them by batch."""
        recipe, rank, world = self._task.recipe, distributed.rank(), distributed.world_size()
        images, device = len(self._task.table), self._machine.device
        batches = epoch_batches(images, recipe.batch_size, recipe.seed, epoch, smallest=max(2, world))
        shares = [batch[rank::world] for batch in batches]
        order = torch.from_numpy(np.concatenate(shares)).to(device)
        order_of = torch.split(order, [len(share) for share in shares])
        draws = [draw(images, recipe.seed, epoch, view).to(device) for view in range(len(self._views))]
        labels = self._labels.to(device, copy=True)
        moving = self._task.supervision.per_batch and self._task.supervision.due(epoch)
        positive_at = self._task.regime.positive_at
        _seed_dropout(recipe.seed, epoch, rank)
        self._network.train()
        losses: list[Tensor] = []
        seen = torch.zeros_like(labels)
        for step, pixels in enumerate(self._images.batches(shares)):
            done = (epoch - 1) * len(batches) + step
            factor = optimise.rate_factor(recipe.schedule, done, recipe.epochs * len(batches))
            rate = optimise.set_rate(self._rule, factor)
            rows, weight = order_of[step], len(shares[step]) * world / len(batches[step])
            loss, logits = self._step(pixels, [own[rows] for own in draws], labels[rows], rows, weight)
            losses.append(loss)
            if moving or positive_at is not None:
                seen[rows] = classifier.scores(logits.float(), self._task.supervision.head)
            if moving:
                labels[rows] = self._task.supervision.refine(labels[rows], seen[rows])
            if step % _LOOK_EVERY == _LOOK_EVERY - 1 or step == len(batches) - 1:
                _require_finite(losses, epoch, len(batches))
            progress.advance(len(batches[step]))
        row = {} if positive_at is None else self._choose(self._merge(seen, shares), positive_at)
        row |= self._replace(self._merge(labels, shares), epoch) if moving else {}
        sizes = torch.tensor([len(share) for share in shares], device=device)
        own = (torch.stack(losses) * sizes).sum().double().cpu()
        total = float(distributed.sum_over_processes(own)) / images
        return {"loss": total, "learning_rate": rate, **row}

    def _merge(self, matrix: Tensor, shares: list[npt.NDArray[np.int64]]) -> Tensor:
        """Put together what each process has of its own rows; every row is one process's own."""
        own = torch.zeros_like(self._labels)
        rows = torch.from_numpy(np.concatenate(shares))
        own[rows] = matrix.cpu()[rows]
        return distributed.sum_over_processes(own)

    def _choose(self, scores: Tensor, positive_at: float) -> dict[str, float]:
        """Ask the stopping rule about this epoch, by the scores that its images got while the student learned."""
        found = train_map(scores, self._labels, positive_at)
        if is_chosen([*(row["train_map"] for row in self._curves.rows), found]):
            # A copy: training goes on in place.
            self._chosen = {key: tensor.detach().clone() for key, tensor in self.student.state_dict().items()}
        return {"train_map": found}

    def _step(
        self, pixels: Tensor, draws: list[Tensor], labels: Tensor, rows: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """One update; returns the mean loss of this process's images and their logits, both before the update."""
        pixels = pixels.to(self._machine.device, non_blocking=True)
        # Both views in one pass: batch normalisation sees them together, and DDP one forward for one backward.
        images = augmented(pixels, self._views, draws)
        with autocast(self._machine.device, self._machine.dtype):
            outputs, looked = self._network(images)
            further = self._task.supervision.further_loss(images, looked, rows)
        logits, *second = outputs.split(len(pixels))
        loss = self._task.supervision.loss(labels, logits, rows)
        if further is not None:
            loss = loss + further
        if second:
            loss = loss + self._task.regime.agreement * ccd.consistency_loss(second[0], logits)
        self._rule.zero_grad()
        # The processes' gradients are averaged: the weight makes that the mean over the whole batch.
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        self._rule.step()
        return loss.detach(), logits.detach()

    def _refine(self, epoch: int) -> dict[str, float]:
        """One clean pass over the images: the labels move, the student stays."""
        if self._task.supervision.per_batch or not self._task.supervision.due(epoch):
            return {}
        scores = self._predict(self._images)
        if not bool(torch.isfinite(scores).all()):
            raise ClipdistillError(f"epoch {epoch}: the student's scores are not finite; {_CURE}")
        return self._replace(self._task.supervision.refine(self._labels, scores), epoch)

    def _replace(self, labels: Tensor, epoch: int) -> dict[str, float]:
        """Take new labels, and keep them for the artifact."""
        before, self._labels = self._labels, labels
        if distributed.rank() == 0:
            checkpoint.write_state(self._folder, "labels", epoch, self._labels.numpy())
        return {"label_change": float((self._labels - before).abs().mean())}

    def _compare(self, epoch: int) -> dict[str, float]:
        """Numbers for the curves and the report alone."""
        truth, row = self._task.truth, {"labels_above_half": float((self._labels > 0.5).float().mean())}
        if truth.train is not None:
            row["label_map"] = mean_average_precision(self._labels.numpy(), truth.train)[0]
        if truth.val is not None and self._val_images is not None:
            scores = self._predict(self._val_images).numpy()
            row["val_map"] = mean_average_precision(scores, truth.val)[0]
            if self._task.regime.positive_at is not None and distributed.rank() == 0:
                checkpoint.write_state(self._folder, "scores", epoch, scores)
        return row

    def _predict(self, images: ImageSource) -> Tensor:
        head, machine = self._task.supervision.head, self._machine
        return predict(self.student, images, head, machine.dtype, machine.batch_size)

    def score(self) -> tuple[Tensor, Tensor]:
        """The student's scores of the training images, one clean pass, beside the labels as they are now.

        All processes call this together.

        Returns:
            Two of float32 [N, C], on the CPU; a label is negative where it is unknown.
        """
        return self._predict(self._images), self._labels

    def _save(self, epoch: int) -> None:
        state = Checkpoint(
            epoch, self.student.state_dict(), self._rule.state_dict(), self._labels, self._curves.rows, self._chosen
        )
        state.write(self._folder)

    def choose_student(self) -> int:
        """Put the weights of the epoch that the stopping rule chose into the student; returns that epoch, from 1.

        Without a rule it is the last one, as the student is.
        """
        if self._chosen is None:
            return self._task.recipe.epochs
        self.student.load_state_dict(self._chosen)
        return 1 + ccd.curvature_epoch([row["train_map"] for row in self._curves.rows])


_CURE = "lower train.recipe.learning_rate, or set train.recipe.precision to fp32; nothing was written"


def _require_finite(losses: list[Tensor], epoch: int, steps: int) -> None:
    window = torch.stack(losses[-_LOOK_EVERY:]).isfinite()
    if not bool(window.all()):
        step = len(losses) - len(window) + int((~window).nonzero()[0, 0]) + 1
        raise ClipdistillError(
            f"the loss is {losses[step - 1].item()} in epoch {epoch}, step {step} of {steps}; {_CURE}"
        )


def _require_batches_for_normalisation(student: nn.Module, batch_size: int) -> None:
    if batch_size < 2 and any(isinstance(module, nn.BatchNorm2d) for module in student.modules()):
        raise ParamsError(
            "train.recipe.batch_size: a backbone with batch normalisation needs at least 2 images an update, found 1"
        )


def _seed_dropout(seed: int, epoch: int, rank: int) -> None:
    """Seed what the network itself draws, so that a resumed run draws the same."""
    state = np.random.SeedSequence([seed, epoch, rank, _STREAM]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))
