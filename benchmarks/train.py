"""A student's training beside the bare step on data in memory, and what lies around the steps.

    python benchmarks/train.py [--backbone resnet18] [--size 80] [--views 1] [--images 640] [--processes 2]

Two ways take turns within each round, in one process, with the same network, batch, precision, loss and optimiser:

  loop       an epoch of `train_student`'s own loop: images from memory in a new order, augmented, normalised, forward,
             backward, update, and the loop's books
  bare step  as many forward, backward and update on one normalised batch that stays where it is: what is left once
             images and books cost nothing

and after them, in the same round, what else an epoch has: the clean pass that refines labels (the demo's run has it in
three epochs of nine, this one in every epoch), the curves with their pass over the evaluation images, the checkpoint;
and the loop with images decoded anew. With `--processes 2` also the loop in processes under DDP, the threads shared
out among them, beside one process with all threads; each of these starts anew in each round.

The images are drawn JPEGs, a quarter as many for evaluation; weights are random. Everything runs once before the clock
does. The defaults are the demo's. Seconds on the processor, over all threads, stand beside those on the clock: where
others compute on the same machine the clock tells of them, too. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipdistill import distributed
from clipdistill.errors import ClipdistillError, ParamsError
from clipdistill.methods import ccd
from clipdistill.params import CdulTrainParams, RecipeParams, StudentParams
from clipdistill.training.augment import augmented
from clipdistill.training.design import ClassifierDesign
from clipdistill.training.gradient_alignment import GradientAlignment
from clipdistill.training.loop import Machine, Task, Trainer, Truth
from clipdistill.training.predict import autocast
from clipdistill.training.progress import TrainingProgress
from clipdistill.training.regime import Regime
from clipdistill.work import WORK_ROOT_VARIABLE
from drawn import draw_table
from script import refuse_too_small

# The demo's.
CLASSES, JPEG = 12, 192

Seconds = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Bench:
    """What the ways have in common.

    Attributes:
        trainer: a run whose images stay in memory.
        anew: the same run, but each image is decoded each time.
        progress: what the loop reports to.
        images: N, of an epoch.
        batch: an update.
        values: float32 [views * batch, 3, S, S], the bare step's batch, on the device.
        labels: float32 [batch, C], on the device.
        agreement: weight of the loss between two views; 0 where there is one.
    """

    trainer: Trainer
    anew: Trainer
    progress: TrainingProgress
    images: int
    batch: int
    values: Tensor
    labels: Tensor
    agreement: float

    def bare(self) -> None:
        """As many steps as an epoch has full batches."""
        network, rule, task, machine = (getattr(self.trainer, f"_{n}") for n in ("network", "rule", "task", "machine"))
        rows = torch.arange(self.batch, device=machine.device)
        network.train()
        for _ in range(self.images // self.batch):
            with autocast(machine.device, machine.dtype):
                outputs, _ = network(self.values)
            logits, *second = outputs.split(self.batch)
            loss = task.supervision.loss(self.labels, logits, rows)
            if second:
                loss = loss + self.agreement * ccd.consistency_loss(second[0], logits)
            rule.zero_grad()
            loss.backward()
            rule.step()

    def round(self, epoch: int, seconds: Seconds) -> None:
        """Run every way once, and note its seconds."""
        trainer, row = self.trainer, {}

        def timed(name: str, way: Callable[[], Any]) -> None:
            begin = time.perf_counter(), time.process_time()
            row.update(way() or {})
            if self.values.is_cuda:
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))

        timed("loop", lambda: trainer._learn(epoch, self.progress))
        timed("bare step", self.bare)
        timed("clean pass", lambda: trainer._refine(epoch))
        timed("curves", lambda: trainer._compare(epoch))
        timed("checkpoint", lambda: trainer._save(epoch))
        timed("loop, decoding anew", lambda: self.anew._learn(epoch, self.progress))


def build(options: argparse.Namespace, folder: Path, threads: int) -> Bench:
    """Draw the images and make the runs."""
    torch.set_num_threads(threads)
    for_images, for_labels = np.random.default_rng(options.seed).spawn(2)
    device = distributed.Compute.load().torch_device()
    dtype = distributed.resolve_precision(options.precision, device)
    machine = Machine(device, dtype, workers=threads, batch_size=None)
    tables = []
    for name, count in (("train", options.images), ("val", max(1, options.images // 4))):
        (folder / name).mkdir()
        tables.append(draw_table(folder / name, count, (JPEG, JPEG), for_images))
    presence, val = (for_labels.integers(0, 2, (len(t), CLASSES)).astype(np.int8) for t in tables)
    labels = torch.from_numpy(for_labels.random((options.images, CLASSES), dtype=np.float32))
    regime = Regime(agreement=1.0, jitter=0.5) if options.views == 2 else Regime()
    student = StudentParams(backbone=options.backbone, image_size=options.size, output_stride=options.stride)

    def run(cache: str) -> Trainer:
        # One epoch more than the rounds: the one that warms up.
        recipe = RecipeParams.model_validate(
            {"epochs": options.rounds + 1, "batch_size": options.batch, "image_cache": cache}
            | {"precision": options.precision, "flip": options.flip}
            | {"min_scale": options.min_scale, "jitter": options.jitter, "learning_rate": 2e-3}
        )
        supervision = GradientAlignment(CdulTrainParams(warmup=0))
        task = Task(
            tables[0],
            labels,
            ClassifierDesign(student, regime.boost),
            recipe,
            supervision,
            Truth(presence, tables[1], val),
            regime,
        )
        return Trainer(task, machine, folder / cache, None)

    kept, anew = run("memory"), run("none")
    pixels = next(kept._images.batches([np.arange(options.batch)])).to(device)
    values = augmented(pixels, kept._views, [torch.rand(options.batch, 8).to(device) for _ in kept._views])
    progress = TrainingProgress(options.rounds + 1, 0, options.images, shown=False)
    own = labels[: options.batch].to(device)
    return Bench(kept, anew, progress, options.images, options.batch, values, own, regime.agreement)


def measure(bench: Bench, rounds: int) -> Seconds:
    """Seconds of each way in each round, on the clock and on the processor, after a round that warms up."""
    seconds: Seconds = defaultdict(list)
    bench.bare()
    for epoch in range(1, rounds + 2):
        bench.round(epoch, seconds)
    return {name: found[1:] for name, found in seconds.items()}


def summary(seconds: Seconds, images: int, batch: int) -> dict[str, Any]:
    """Medians over the rounds, and the shares that they give, on the clock and on the processor."""
    steps = images // batch
    clock, processor = (
        {name: statistics.median(pair[kind] for pair in found) for name, found in seconds.items()} for kind in (0, 1)
    )
    result: dict[str, Any] = {}
    for suffix, median in (("", clock), ("_of_processor_time", processor)):
        bare = median["bare step"] / (steps * batch) * images
        whole = sum(median[name] for name in ("loop", "clean pass", "curves", "checkpoint"))
        result[f"share_of_bare_step{suffix}"] = round(bare / median["loop"], 4)
        result[f"epoch_share_of_bare_step{suffix}"] = round(bare / whole, 4)
        result[f"decoding_anew_share{suffix}"] = round(median["loop"] / median["loop, decoding anew"], 4)
    return result | {
        "images_per_s": round(images / clock["loop"], 2),
        "bare_images_per_s": round(steps * batch / clock["bare step"], 2),
        "seconds": {name: round(median, 4) for name, median in clock.items()},
        "processor_seconds": {name: round(median, 4) for name, median in processor.items()},
    }


def compare_processes(options: argparse.Namespace, arguments: list[str], folder: Path) -> dict[str, Any]:
    """Images/s of the loop in one process and in several with the same threads in all, by turns."""
    rates: dict[int, list[float]] = {1: [], options.processes: []}
    for turn in range(options.rounds):
        for processes, found in rates.items():
            out = folder / f"{processes}-{turn}.json"
            distributed.launch([__file__, *arguments, "--timed", str(out)], processes)
            found.append(json.loads(out.read_text(encoding="utf-8")))
    one, several = (statistics.median(found) for found in rates.values())
    print(f"1 process {one:.1f} images/s, {options.processes} processes {several:.1f} images/s\n")
    return {
        "processes_images_per_s": round(several, 2),
        "one_process_images_per_s": round(one, 2),
        "times_one_process": round(several / one, 4),
    }


def time_loop(options: argparse.Namespace) -> None:
    """Write the loop's images/s in these processes, from one epoch after one that warms up."""
    world = distributed.world_size()
    with tempfile.TemporaryDirectory() as name, distributed.process_group(distributed.Compute.load().torch_device()):
        bench = build(options, Path(name), max(1, options.threads // world))
        bench.trainer._learn(1, bench.progress)
        distributed.barrier()
        begin = time.perf_counter()
        bench.trainer._learn(2, bench.progress)
        rate = options.images / (time.perf_counter() - begin)
    if distributed.rank() == 0:
        Path(options.timed).write_text(json.dumps(rate), encoding="utf-8")


def run(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Measure, print the table for people, and return what the last line says."""
    with tempfile.TemporaryDirectory() as name:
        os.environ[WORK_ROOT_VARIABLE] = str(Path(name) / "work")
        bench = build(options, Path(name), options.threads)
        seconds = measure(bench, options.rounds)
        result = summary(seconds, options.images, options.batch)
        settings = {key: value for key, value in vars(options).items() if key != "timed"}
        settings |= {"precision": str(bench.trainer._machine.dtype).removeprefix("torch.")}
        print(table_of(seconds, result | settings))
        if options.processes > 1:
            result |= compare_processes(options, arguments, Path(name))
    return result | settings


def table_of(seconds: Seconds, result: dict[str, Any]) -> str:
    """Lay the results out as text."""
    rows = []
    for name, found in seconds.items():
        clock = [pair[0] for pair in found]
        times = f"{result['seconds'][name]:>10.3f}{result['processor_seconds'][name]:>12.3f}"
        rows.append(f"{name:<22}{times}   {min(clock):.3f} to {max(clock):.3f}")
    table = "\n".join([f"{'part':<22}{'seconds':>10}{'processor':>12}   seconds over the rounds", *rows])
    return """\
{backbone}, {size} px, stride {stride}, batch {batch}, {views} view(s), {precision}, threads {threads}; \
{images} images an epoch, {rounds} rounds

{table}

Loop: {images_per_s:.1f} images/s, {share_of_bare_step:.1%} of the bare step \
({share_of_bare_step_of_processor_time:.1%} by processor time).
Whole epoch, refined and with curves: {epoch_share_of_bare_step:.1%} ({epoch_share_of_bare_step_of_processor_time:.1%}).
Decoding anew: {decoding_anew_share:.1%} of the loop's speed ({decoding_anew_share_of_processor_time:.1%}).
""".format(table=table, **result)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ParamsError: a number is too small, or the images do not fill a batch.
    """
    parser = argparse.ArgumentParser(description="A student's training beside the bare step on data in memory")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=80, help="pixels of the student's input")
    parser.add_argument("--stride", type=int, default=16, help="of the student's map")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--views", type=int, choices=(1, 2), default=1, help="2: with CCD's consistency")
    parser.add_argument("--flip", type=float, default=0.5)
    parser.add_argument("--min-scale", type=float, default=1.0)
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--images", type=int, default=640, help="an epoch")
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--threads", type=int, default=distributed.cores(), help="in all; default: all cores")
    parser.add_argument("--processes", type=int, default=1, help="more: the loop under DDP, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timed", help=argparse.SUPPRESS)
    options = refuse_too_small(parser.parse_args(arguments))
    if options.images < options.batch:
        raise ParamsError(f"--images: {options.images} do not fill a batch of {options.batch}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        options = parse(given)
        if options.timed:
            time_loop(options)
        else:
            print(json.dumps(run(options, given)))
    except ClipdistillError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
