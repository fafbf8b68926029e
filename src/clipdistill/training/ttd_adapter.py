"""TTD's training: an adapter learns that the map of a caption is the union of the maps of the words that it shows."""

from __future__ import annotations

import logging
import math
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipdistill import distributed, store
from clipdistill.clip import adapter, tagging
from clipdistill.clip.tagging import Maps, Tagger, Texts
from clipdistill.clip.teacher import Teacher
from clipdistill.datasets.captions.table import CaptionTable
from clipdistill.errors import ClipdistillError, DataError, ParamsError
from clipdistill.methods import ttd
from clipdistill.params import Params, TtdParams
from clipdistill.stage import Paths
from clipdistill.training import checkpoint, optimise, ttd_pairs, ttd_setup
from clipdistill.training.augment import Augmentation, draw
from clipdistill.training.checkpoint import Checkpoint
from clipdistill.training.curves import Curves
from clipdistill.training.data import ImageSource, Rows, epoch_batches
from clipdistill.training.loop import Machine
from clipdistill.training.predict import autocast
from clipdistill.training.progress import TrainingProgress
from clipdistill.training.train import launch
from clipdistill.work import code_digest, work_root

logger = logging.getLogger(__name__)

METRICS = Path("metrics/train/ttd.json")

_CODE = ["training", "methods", "clip", "students/tokens.py", "datasets/captions"]

# Steps between looks at the loss: a look waits for the GPU.
_LOOK_EVERY = 16

_CURE = "lower ttd.recipe.learning_rate, or set ttd.recipe.precision to fp32; nothing was written"


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be learnt: N pairs, CLIP, and how."""

    table: CaptionTable
    model: Teacher
    size: int
    params: TtdParams

    @property
    def scale(self) -> float:
        """Of the cosines in a softmax over words."""
        return ttd_setup.word_scale(self.params, self.model)


def train_ttd(params: Params, command: list[str]) -> None:
    """Train the adapter, in as many processes as this machine is set to, and write <cache>/ttd/adapter.

    A run that was killed goes on after its last finished epoch, and ends in the same bytes (on a CPU, with the same
    number of threads and processes).

    Args:
        params: all parameters; `clip.adapter` is not looked at.
        command: the stage's script and its arguments, started once a process where there are several.

    Raises:
        ParamsError, DataError, TeacherError, ArtifactError: what cannot be read, or does not fit together.
        ClipdistillError: the loss is no longer finite.
    """
    compute = distributed.Compute.load()
    if launch(command, params.ttd.recipe.batch_size, compute):
        return
    machine = ttd_setup.machine(params.ttd, compute)
    torch.backends.cudnn.deterministic = True
    paths = Paths(params.dataset.name)
    model = ttd_setup.plain_teacher(params)
    model.model.to(machine.device)
    size = ttd_setup.image_size(params.ttd, model)
    task = _Task(CaptionTable.load(paths.captions("train")), model, size, params.ttd)
    cut = tagging.cut_off(model.tokenizer, task.table.captions)
    if cut and distributed.rank() == 0:
        logger.warning("train@ttd: %d captions are longer than the text encoder reads; their ends do not count", cut)
    provenance = _provenance(task, machine.dtype)
    identity = store.fingerprint([provenance, machine.device.type, code_digest(_CODE)])
    folder = work_root() / "train/ttd" / identity[:32]
    with distributed.process_group(machine.device):
        rows = _kept_rows(task, machine, folder)
        trainer = _Trainer(task, rows, machine, folder, paths.curves("ttd"))
        last = trainer.run()
        if distributed.rank() == 0:
            adapter.save(paths.ttd_adapter, trainer.adapted.cpu(), model.identity["weights"], provenance)
            store.write_json(METRICS, {"pairs": len(task.table), "kept": len(rows), "captions_cut_off": cut, **last})
            shutil.rmtree(folder)
        distributed.barrier()


def _provenance(task: _Task, dtype: torch.dtype) -> dict[str, Any]:
    kept = {"score", "chosen_by", "threshold", "keep", "loss", "slope", "shift"}
    return {
        **task.model.identity,
        "captions": task.table.fingerprint,
        "image_size": task.size,
        "scale": round(task.scale, 6),
        **task.params.model_dump(include=kept),
        "lora": task.params.lora.model_dump(),
        "recipe": task.params.recipe.model_dump(),
        "arithmetic": str(dtype).removeprefix("torch."),
    }


def _kept_rows(task: _Task, machine: Machine, folder: Path) -> Rows:
    """Rows of the pairs that training keeps; a killed run does not look at all pairs again."""
    kept = folder / "kept.npy"
    there = kept.exists()
    # Nobody may write it before everybody has looked.
    distributed.barrier()
    if there:
        return np.asarray(checkpoint.read_array(kept, folder), dtype=np.int64)
    rows = ttd_pairs.kept(task.model, task.table, task.params.keep, machine)
    logger.info("train@ttd: %d of %d pairs are kept", len(rows), len(task.table))
    world, batch = distributed.world_size(), task.params.recipe.batch_size
    if len(rows) < world:
        raise DataError(f"training needs at least a pair a process ({world}), and ttd.keep leaves {len(rows)}")
    if batch < world:
        raise ParamsError(f"ttd.recipe.batch_size: {batch} pairs an update cannot be shared by {world} processes")
    if distributed.rank() == 0:
        checkpoint.write_array(kept, rows)
    distributed.barrier()
    return rows


class _Trainer:
    """A run: adapter and update rule, from the last checkpoint or from the start."""

    def __init__(self, task: _Task, rows: Rows, machine: Machine, folder: Path, curves: Path) -> None:
        self._task, self._rows, self._machine, self._folder = task, rows, machine, folder
        recipe, lora = task.params.recipe, task.params.lora
        self.adapted = adapter.add(task.model.model, lora.rank, lora.alpha, recipe.seed)
        # Batch normalisation keeps the statistics that the weights were trained with.
        self.adapted.to(machine.device).eval()
        self._learning = adapter.learning(self.adapted)
        group = {"params": list(self._learning.values()), "peak": recipe.learning_rate, "lr": recipe.learning_rate}
        self._rule = torch.optim.AdamW([group], weight_decay=recipe.weight_decay, fused=True)
        self._tagger = Tagger(task.model.model)
        self._network = self._wrapped()
        self._view = Augmentation(recipe.flip, 1.0, 0.0)
        self._done, earlier = 0, []
        if state := Checkpoint.read(folder):
            with torch.no_grad():
                for name, value in state.student.items():
                    self._learning[name].copy_(value)
            self._rule.load_state_dict(state.optimiser)
            self._done, earlier = state.epoch, state.curves
        # Nobody may write the first checkpoint before everybody has seen that there was none.
        distributed.barrier()
        self._curves = Curves(curves if distributed.rank() == 0 else None, earlier)

    def _wrapped(self) -> nn.Module:
        if distributed.world_size() == 1:
            return self._tagger
        device = self._machine.device
        return DistributedDataParallel(self._tagger, device_ids=[device] if device.type == "cuda" else None)

    def run(self) -> dict[str, float]:
        """Train through the last epoch; returns its row of the curves."""
        recipe, machine = self._task.params.recipe, self._machine
        source = ImageSource(self._task.table, self._task.size, "auto", machine.workers, machine.device.type == "cuda")
        with TrainingProgress(recipe.epochs, self._done, len(self._rows), distributed.rank() == 0) as progress:
            for epoch in range(self._done + 1, recipe.epochs + 1):
                row = self._learn(epoch, source, progress)
                self._curves.add(row)
                if distributed.rank() == 0:
                    self._save(epoch)
                progress.epoch(epoch, row)
        self._curves.close()
        return self._curves.rows[-1]

    def _learn(self, epoch: int, source: ImageSource, progress: TrainingProgress) -> dict[str, float]:
        """One pass over the pairs."""
        recipe, rank, world = self._task.params.recipe, distributed.rank(), distributed.world_size()
        batches = epoch_batches(len(self._rows), recipe.batch_size, recipe.seed, epoch, smallest=world)
        shares = [self._rows[batch[rank::world]] for batch in batches]
        draws = draw(len(self._task.table), recipe.seed, epoch)
        sums = torch.zeros(6, dtype=torch.float64)
        for step, pixels in enumerate(source.batches(shares)):
            done = (epoch - 1) * len(batches) + step
            factor = optimise.rate_factor(recipe.schedule, done, recipe.epochs * len(batches))
            rate = optimise.set_rate(self._rule, factor)
            share = shares[step]
            weight = len(share) * world / len(batches[step])
            sums += self._step(pixels, draws[torch.from_numpy(share)], share, weight)
            if (step % _LOOK_EVERY == _LOOK_EVERY - 1 or step == len(batches) - 1) and not math.isfinite(sums[1]):
                raise ClipdistillError(f"train@ttd: the loss is no longer finite in epoch {epoch}; {_CURE}")
            progress.advance(len(batches[step]))
        pairs, *totals = distributed.sum_over_processes(sums).tolist()
        names = ("loss", "caption_loss", "selected", "caption_area", "target_area")
        return {"learning_rate": rate, **{name: total / pairs for name, total in zip(names, totals, strict=True)}}

    def _step(self, pixels: Tensor, draws: Tensor, rows: Rows, weight: float) -> Tensor:
        """One update; returns pairs, and sums over them of what the curves show."""
        device, params = self._machine.device, self._task.params
        images = self._view(pixels.to(device, non_blocking=True), draws.to(device))
        images = ttd_pairs.normalised(images, self._task.model)
        texts = ttd_pairs.texts(self._task.model, self._task.table, rows).to(device)
        valid = texts.valid
        with autocast(device, self._machine.dtype):
            maps = self._network(images, texts)
            looked, whole = self._chooser(images, texts, maps)
        scores = ttd_setup.score_words(params.score, looked, valid, self._task.scale, whole)
        if not bool(torch.isfinite(scores).all()):
            raise ClipdistillError(f"train@ttd: the maps are no longer finite; {_CURE}")
        selected = ttd.select_tags(scores, valid, params.threshold)
        losses = ttd.ttd_loss(maps.tags, maps.caption, selected, valid, params.loss, params.slope, params.shift)
        self._rule.zero_grad()
        # The processes' gradients are averaged: the weight makes that the mean over the whole batch.
        (losses.total * weight).backward()  # type: ignore[no-untyped-call]
        self._rule.step()
        with torch.no_grad():
            areas = (
                ttd.calibrate(maps.caption, params.slope, params.shift).mean(),
                ttd.union_target(ttd.tag_targets(maps.tags, selected)).mean(),
            )
            # By pair, so that it does not depend on who has which pairs.
            chosen = (selected.sum(dim=1) / valid.sum(dim=1).clamp(min=1)).mean()
        means = torch.stack([losses.total.detach(), losses.caption.detach(), chosen, *areas]).double().cpu()
        return torch.cat([torch.ones(1, dtype=torch.float64), means]) * len(rows)

    @torch.no_grad()
    def _chooser(self, images: Tensor, texts: Texts, maps: Maps) -> tuple[Maps, Tensor | None]:
        """What chooses the words sees: maps, and where it looks at whole images, their embeddings [B, D].

        It is the network as it is now, or as it was before it learnt anything.
        """
        params = self._task.params
        plain = params.chosen_by == "frozen"
        with self.adapted.disable_adapter() if plain else nullcontext():
            whole = self._whole(images) if params.score == "image" else None
            return self._tagger(images, texts) if plain else maps, whole

    def _whole(self, images: Tensor) -> Tensor:
        """Embeddings of whole images at the encoder's own side, as evaluation has them: float32 [B, D]."""
        side = self._task.model.preprocessing.size
        small = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        seen: Tensor = self._task.model.model.encode_image(small)
        return seen.float()

    def _save(self, epoch: int) -> None:
        state = {name: value.detach() for name, value in self._learning.items()}
        Checkpoint(epoch, state, self._rule.state_dict(), torch.empty(0), self._curves.rows, None).write(self._folder)
