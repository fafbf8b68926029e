"""Embedding as a stage: prepare the work folders, share their shards between processes, seal the results."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from clipdistill import distributed
from clipdistill.clip import embed, teacher, views
from clipdistill.clip.preprocessing import Resize, ViewTransform
from clipdistill.datasets.table import SPLITS, ImageTable
from clipdistill.errors import ParamsError
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.work import Work

logger = logging.getLogger(__name__)

KINDS = ("global", "snippets")
CPU_BATCH, GPU_BATCH = 64, 256


class _Arithmetic(NamedTuple):
    """What the last bit of an embedding may depend on."""

    device: str
    batch: int
    threads: int
    torch: str


@dataclass(frozen=True, slots=True)
class _Job:
    """One split's views of one kind."""

    split: str
    table: ImageTable
    views: views.ViewTable
    work: Work


def embed_views(kind: str, params: Params, command: list[str]) -> None:
    """Embed the views of one kind in every split.

    Called in one process it prepares, starts `command` once for each process where there are several, and seals.
    Called by several, as torchrun starts them, each fills its shards; the first seals once all are done.

    Args:
        kind: "global" or "snippets".
        params: all parameters.
        command: the stage's script and its arguments.

    Raises:
        ParamsError: an unknown kind.
        ClipdistillError: what loading, reading or writing refuses.
    """
    if kind not in KINDS:
        raise ParamsError(f"embed: unknown kind of view {kind!r}; there are {' and '.join(KINDS)}")
    compute = distributed.Compute.load()
    device = compute.torch_device()
    model = teacher.load(params.clip)
    jobs = _jobs(kind, params, model, _arithmetic(compute, device))
    pending = sum(len(job.work.pending()) for job in jobs)
    processes = min(compute.process_count(device, per_core=True), pending)
    if distributed.world_size() == 1 and processes > 1:
        distributed.launch(command, processes)
    elif pending or distributed.world_size() > 1:
        _fill(kind, params, model, jobs, compute, device)
    if distributed.world_size() > 1:
        with distributed.process_group(torch.device("cpu")):
            distributed.barrier()
    if distributed.is_first_to_finish():
        for job in jobs:
            job.work.seal(Paths(params.dataset.name).embeddings(job.split, kind))


def _arithmetic(compute: distributed.Compute, device: torch.device) -> _Arithmetic:
    """Device, batch and threads: one thread a process unless told otherwise, and so any number of processes."""
    on_cpu = device.type == "cpu"
    batch = compute.batch_size or (CPU_BATCH if on_cpu else GPU_BATCH)
    return _Arithmetic(device.type, batch, (compute.threads or 1) if on_cpu else 0, torch.__version__)


def _jobs(kind: str, params: Params, model: teacher.Teacher, arithmetic: _Arithmetic) -> list[_Job]:
    paths = Paths(params.dataset.name)
    section = params.views.whole if kind == "global" else params.views.snippets
    provenance = {"kind": kind, "precision": params.clip.precision, "views": section.model_dump()}
    jobs = []
    for split in SPLITS:
        table = ImageTable.load(paths.table(split))
        boxes = views.whole(table) if kind == "global" else views.snippets(table, params.views.snippets)
        work = embed.prepare(f"embed/{kind}-{split}", model, table, boxes, provenance, arithmetic)
        jobs.append(_Job(split, table, boxes, work))
    return jobs


def _fill(
    kind: str,
    params: Params,
    model: teacher.Teacher,
    jobs: list[_Job],
    compute: distributed.Compute,
    device: torch.device,
) -> None:
    """Fill this process's share: every world_size-th shard of each job, the first one turning with the job."""
    rank, world = distributed.rank(), distributed.world_size()
    if device.type == "cpu":
        torch.set_num_threads(_arithmetic(compute, device).threads)
    encoder = embed.ImageEncoder(model, params.clip.precision, device)
    resize: Resize = params.views.whole.resize if kind == "global" else params.views.snippets.resize
    transform = ViewTransform(model.preprocessing, resize)
    batch = _arithmetic(compute, device).batch
    threads = compute.workers or (1 if device.type == "cpu" else 8)
    shares = {job.split: [s for s in job.work.pending() if (s + turn) % world == rank] for turn, job in enumerate(jobs)}
    total = sum(_rows(job, shares[job.split]) for job in jobs)
    with _progress(f"embed@{kind}" + (f" (process 1 of {world})" if world > 1 else ""), total, rank == 0) as advance:
        for job in jobs:
            source = embed.ViewSource(job.table, job.views, transform, threads)
            embed.fill(job.work, shares[job.split], source, encoder, batch, advance)


def _rows(job: _Job, shards: list[int]) -> int:
    ranges = [job.work.specs["embedding"].range_of(shard) for shard in shards]
    return sum(stop - start for start, stop in ranges)


@contextmanager
def _progress(name: str, total: int, shown: bool) -> Iterator[embed.Progress]:
    """A bar with views/s and time left on a terminal; a line every ten seconds elsewhere."""
    if shown and sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} views, {task.fields[rate]:,.0f} views/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=total, rate=0.0)
            begin = time.monotonic()
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                bar.update(task, advance=count, rate=done / max(1e-9, time.monotonic() - begin))

            yield advance
        return
    line = _LineProgress(name, total, shown)
    yield line.advance
    line.finish()


class _LineProgress:
    """Progress as log lines."""

    def __init__(self, name: str, total: int, shown: bool) -> None:
        self._name, self._total, self._shown = name, total, shown
        self._begin = self._last = time.monotonic()
        self._done = 0

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if self._shown and now - self._last > 10:
            self._last = now
            self._log(now)

    def _log(self, now: float) -> None:
        rate = self._done / max(1e-9, now - self._begin)
        left = (self._total - self._done) / max(1e-9, rate)
        logger.info("%s: %d of %d views, %.0f views/s, %.0f s left", self._name, self._done, self._total, rate, left)

    def finish(self) -> None:
        if self._shown and self._done:
            self._log(time.monotonic())
