"""Embedding as a stage: prepare the work folders, share their shards between processes, seal the results."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from clipdistill import distributed
from clipdistill.clip import embed, teacher, views
from clipdistill.clip.preprocessing import Resize, ViewTransform
from clipdistill.datasets.table import SPLITS, ImageTable
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.work import Work

logger = logging.getLogger(__name__)

CPU_BATCH, GPU_BATCH = 64, 256


@dataclass(frozen=True, slots=True)
class _Job:
    """One split's views of one kind."""

    split: str
    table: ImageTable
    views: views.ViewTable
    work: Work


def embed_views(kind: str, params: Params, command: list[str]) -> None:
    """Embed the views of one kind in every split.

    Called in the stage's own process it prepares, starts `command` once for each process where there are several, and
    seals. Called in one of those processes it fills that process's shards and returns.

    Args:
        kind: "global" or "snippets".
        params: all parameters.
        command: the stage's script and its arguments.
    """
    compute = distributed.Compute.load()
    device = compute.torch_device()
    processes = compute.process_count(device, per_core=True)
    model = teacher.load(params.clip)
    jobs = _jobs(kind, params, model)
    if distributed.world_size() > 1:
        _fill(kind, params, model, jobs, compute, device)
        return
    pending = sum(len(job.work.pending()) for job in jobs)
    if pending:
        processes = min(processes, pending)
        if processes > 1:
            distributed.launch(command, processes)
        else:
            _fill(kind, params, model, jobs, compute, device)
    paths = Paths(params.dataset.name)
    for job in jobs:
        job.work.seal(paths.embeddings(job.split, kind))


def _jobs(kind: str, params: Params, model: teacher.Teacher) -> list[_Job]:
    paths = Paths(params.dataset.name)
    section = params.views.whole if kind == "global" else params.views.snippets
    provenance = {"kind": kind, "precision": params.clip.precision, "views": section.model_dump()}
    jobs = []
    for split in SPLITS:
        table = ImageTable.load(paths.table(split))
        boxes = views.whole(table) if kind == "global" else views.snippets(table, params.views.snippets)
        work = embed.prepare(f"embed/{kind}-{split}", model, table, boxes, provenance)
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
        # One thread a process unless told otherwise: another number may round the last bit of a sum differently.
        torch.set_num_threads(compute.threads or 1)
    encoder = embed.ImageEncoder(model, params.clip.precision, device)
    resize: Resize = params.views.whole.resize if kind == "global" else params.views.snippets.resize
    transform = ViewTransform(model.preprocessing, resize)
    batch = compute.batch_size or (CPU_BATCH if device.type == "cpu" else GPU_BATCH)
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
        with Progress(*columns, console=None) as bar:
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
