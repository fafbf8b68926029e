"""MKT's ranking loss in closed form and pair by pair: seconds and memory of one training step.

    python benchmarks/rank_loss.py [--labels 925 7186] [--batch 64] [--patches 196] [--width 512] [--rounds 3]

A step is the scores of random embeddings (two_stream), the loss, and the way back to the embeddings of images and
patches; the image tower is not in it. Three losses take turns within each round, each in a process of its own, and what
is told is the growth of that process's highest memory over the step, inputs and a small step before it left out:

  closed      rank_loss: the hinge over pairs by a search among sorted scores
  smooth      log_sum_exp_loss, the default
  pairwise    the hinge as the released code has it, by tensors [B, S, S]; left out where --pairwise-mb, the size of one
              of them, would be exceeded

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipdistill.errors import ClipdistillError
from clipdistill.methods import mkt
from script import refuse_too_small, report

_UNIT = 1 if sys.platform == "darwin" else 1024


def pairwise(scores: Tensor, labels: Tensor) -> Tensor:
    """The released loss over [B, S, S] pairs; labels 1 present, 0 absent."""
    present, absent = (labels == 1).to(scores.dtype), (labels == 0).to(scores.dtype)
    mask = present.unsqueeze(1) * absent.unsqueeze(-1)
    pairs = 1 + (scores * absent).unsqueeze(-1) - (scores * present).unsqueeze(1)
    hinge = (mask * pairs).clamp(min=0)
    violations = torch.sign(hinge).sum(1).sum(1)
    return (hinge.sum(1).sum(1) / (violations + 1e-8)).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "closed": mkt.rank_loss,
    "smooth": mkt.log_sum_exp_loss,
    "pairwise": pairwise,
}


class Measured(NamedTuple):
    """What a step took: seconds, the growth of its process's highest memory and that memory in MB, and the loss."""

    seconds: float
    grown_mb: float
    peak_mb: float
    value: float


@dataclass(frozen=True, slots=True)
class Bench:
    """Sizes of a step.

    Attributes:
        batch: B, images.
        patches: M, of each image.
        width: D, of all embeddings.
        k: patches a label.
        threads: of torch.
    """

    batch: int
    patches: int
    width: int
    k: int
    threads: int

    def inputs(self, labels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings of images, patches and labels, and labels of which one in a hundred is present."""
        source = torch.Generator().manual_seed(0)
        shapes = ((self.batch, self.width), (self.batch, self.patches, self.width), (labels, self.width))
        cls, patches, text = (torch.randn(shape, generator=source) for shape in shapes)
        truth = (torch.rand(self.batch, labels, generator=source) < 0.01).to(torch.int8)
        truth[:, 0] = 1
        return cls.requires_grad_(), patches.requires_grad_(), text, truth

    def step(self, loss: str, labels: int) -> Measured:
        """One step in this process."""
        torch.set_num_threads(self.threads)
        small = Bench(2, 4, 8, 2, self.threads)
        small._learn(loss, *small.inputs(3))
        made = self.inputs(labels)
        before, begin = _peak_mb(), time.perf_counter()
        value = self._learn(loss, *made)
        seconds, peak = time.perf_counter() - begin, _peak_mb()
        return Measured(seconds, peak - before, peak, value)

    def _learn(self, loss: str, cls: Tensor, patches: Tensor, text: Tensor, truth: Tensor) -> float:
        value = LOSSES[loss](mkt.two_stream(cls, patches, text, self.k), truth)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT / 1e6


def apart(bench: Bench, loss: str, labels: int) -> Measured:
    """A step in a process that has imported and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(bench.step, loss, labels).result()


def pair_tensor_mb(batch: int, labels: int) -> float:
    """Size of one float32 tensor [B, S, S]."""
    return 4 * batch * labels**2 / 1e6


def measure(bench: Bench, options: argparse.Namespace) -> dict[tuple[int, str], list[Measured]]:
    """Let the losses take turns; what each took in each round, by number of labels and loss.

    Raises:
        ClipdistillError: the closed form has another value than the pairs.
    """
    runs = [
        (labels, loss)
        for labels in options.labels
        for loss in LOSSES
        if loss != "pairwise" or pair_tensor_mb(bench.batch, labels) <= options.pairwise_mb
    ]
    found: dict[tuple[int, str], list[Measured]] = {run: [] for run in runs}
    for _ in range(options.rounds):
        for labels, loss in runs:
            found[labels, loss].append(apart(bench, loss, labels))
    require_same_values(found)
    return found


def require_same_values(found: dict[tuple[int, str], list[Measured]]) -> None:
    """Refuse to compare two ways that compute different losses; those that differ by rounding are the same."""
    for (labels, loss), items in found.items():
        if loss == "pairwise" and abs(difference := items[0].value - found[labels, "closed"][0].value) > 1e-4:
            raise ClipdistillError(f"of {labels} labels the losses differ by {difference}: no speeds to compare")


def summary(found: dict[tuple[int, str], list[Measured]], batch: int) -> dict[str, float]:
    """Medians of seconds and the greatest growth of memory, and what the pairs take over the closed form."""
    result: dict[str, float] = {}
    for (labels, loss), items in found.items():
        result[f"{labels}_{loss}_s"] = round(statistics.median(item.seconds for item in items), 4)
        result[f"{labels}_{loss}_mb"] = round(max(item.grown_mb for item in items), 1)
        result[f"{labels}_{loss}_peak_mb"] = round(max(item.peak_mb for item in items), 1)
    for labels in dict.fromkeys(labels for labels, _ in found):
        result[f"{labels}_pair_tensor_mb"] = round(pair_tensor_mb(batch, labels), 1)
        if (labels, "pairwise") in found:
            for unit in ("s", "mb"):
                closed = result[f"{labels}_closed_{unit}"]
                result[f"{labels}_times_closed_{unit}"] = round(result[f"{labels}_pairwise_{unit}"] / closed, 3)
    return result


def table_of(found: dict[tuple[int, str], list[Measured]], options: argparse.Namespace) -> str:
    """Lay the results out as text."""
    title = (
        f"batch {options.batch}, {options.patches} patches, width {options.width}, k {options.k}, "
        f"threads {options.threads}, {options.rounds} rounds"
    )
    head = (
        f"{'labels':<8}{'loss':<10}{'seconds':>9}{'range':>17}{'grown MB':>10}{'peak MB':>9}{'one [B, S, S], MB':>20}"
    )
    lines = [
        f"{labels:<8}{loss:<10}{_seconds(items)}{max(item.grown_mb for item in items):>10.0f}"
        f"{max(item.peak_mb for item in items):>9.0f}{pair_tensor_mb(options.batch, labels):>20.0f}"
        for (labels, loss), items in found.items()
    ]
    return "\n".join([title, "", head, *lines, ""])


def _seconds(items: list[Measured]) -> str:
    seconds = [item.seconds for item in items]
    return f"{statistics.median(seconds):>9.2f}{f'{min(seconds):.2f} to {max(seconds):.2f}':>17}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ParamsError: a number is too small.
    """
    parser = argparse.ArgumentParser(description="MKT's ranking loss in closed form and pair by pair")
    parser.add_argument("--labels", type=int, nargs="+", default=[925, 7_186], help="default: NUS-WIDE's, Open Images'")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--patches", type=int, default=196, help="default: ViT-B/16's at 224 pixels")
    parser.add_argument("--width", type=int, default=512, help="of the embeddings")
    parser.add_argument("--k", type=int, default=16, help="patches a label")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairwise-mb", type=int, default=500, help="leave pairs out where one tensor is larger")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch; default: all cores")
    return refuse_too_small(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table for people, and return what the last line says."""
    bench = Bench(options.batch, options.patches, options.width, options.k, options.threads)
    found = measure(bench, options)
    print(table_of(found, options))
    return summary(found, options.batch) | vars(options)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return report(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
