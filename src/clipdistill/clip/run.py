"""Embedding as a stage: prepare the work folders, share their shards between processes, seal the results."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from clipdistill import distributed
from clipdistill.clip import embed, teacher, views
from clipdistill.clip.preprocessing import ViewTransform
from clipdistill.clip.views import ViewTable
from clipdistill.datasets.table import SPLITS, ImageTable
from clipdistill.errors import ParamsError
from clipdistill.params import CamViewParams, GlobalViewParams, Params, SnippetViewParams
from clipdistill.stage import Paths
from clipdistill.work import Work

logger = logging.getLogger(__name__)

CPU_BATCH, GPU_BATCH = 64, 256


class _Arithmetic(NamedTuple):
    """What the last bit of an embedding may depend on."""

    device: str
    batch: int
    threads: int
    torch: str


@dataclass(frozen=True, slots=True)
class Request:
    """Views of one kind in one split, and where their embeddings go.

    Attributes:
        split: its name.
        table: N images.
        views: V views of them.
        out: artifact.
    """

    split: str
    table: ImageTable
    views: ViewTable
    out: Path


@dataclass(frozen=True, slots=True)
class _Job:
    """A request and its work folder."""

    request: Request
    work: Work


def requests(kind: str, params: Params) -> list[Request]:
    """Views of a kind in every split.

    Args:
        kind: "global" or "snippets".
        params: all parameters.

    Raises:
        ParamsError: an unknown kind.
    """
    if kind not in ("global", "snippets"):
        raise ParamsError(f"embed: unknown kind of view {kind!r}; there are global, snippets and cam")
    paths = Paths(params.dataset.name)
    found = []
    for split in SPLITS:
        table = ImageTable.load(paths.table(split))
        boxes = views.whole(table) if kind == "global" else views.snippets(table, params.views.snippets)
        found.append(Request(split, table, boxes, paths.embeddings(split, kind)))
    return found


def cam_request(params: Params, table: Path, out: Path) -> Request:
    """Views that a student points at in the training images.

    Args:
        params: all parameters.
        table: artifact of the view table.
        out: where its embeddings go.
    """
    images = ImageTable.load(Paths(params.dataset.name).table("train"))
    return Request("train", images, views.stored(table, images), out)


def embed_views(kind: str, wanted: list[Request], params: Params, command: list[str]) -> None:
    """Embed the views of one kind.

    Called in one process it prepares, starts `command` once for each process where there are several, and seals.
    Called by several, as torchrun starts them, each fills its shards; the first seals once all are done.

    Args:
        kind: "global", "snippets" or "cam".
        wanted: what is to be embedded.
        params: all parameters.
        command: a script and its arguments that call this function in the same way.

    Raises:
        ClipdistillError: what loading, reading or writing refuses.
    """
    compute = distributed.Compute.load()
    device = compute.torch_device()
    arithmetic = _arithmetic(compute, device)
    model = teacher.load(params.clip)
    section = _section(kind, params)
    provenance = {"kind": kind, "precision": params.clip.precision, "views": section.model_dump()}
    jobs = [_job(request, model, provenance, arithmetic) for request in wanted]
    pending = sum(len(job.work.pending()) for job in jobs)
    processes = min(compute.process_count(device, per_core=True), pending)
    if distributed.world_size() == 1 and processes > 1:
        distributed.launch(command, processes)
    elif pending or distributed.world_size() > 1:
        if device.type == "cpu":
            torch.set_num_threads(arithmetic.threads)
        encoder = embed.ImageEncoder(model, params.clip.precision, device)
        transform = ViewTransform(model.preprocessing, section.resize)
        threads = compute.workers or (1 if device.type == "cpu" else 8)
        _fill(f"embed@{kind}", jobs, encoder, transform, threads, arithmetic.batch)
    if distributed.world_size() > 1:
        with distributed.process_group(device):
            distributed.barrier()
    if distributed.is_leader():
        for job in jobs:
            job.work.seal(job.request.out)


def _section(kind: str, params: Params) -> GlobalViewParams | SnippetViewParams | CamViewParams:
    if kind == "global":
        return params.views.whole
    return params.views.snippets if kind == "snippets" else params.views.cam


def _arithmetic(compute: distributed.Compute, device: torch.device) -> _Arithmetic:
    """Device, batch and threads: one thread a process unless told otherwise, and so any number of processes."""
    on_cpu = device.type == "cpu"
    batch = compute.batch_size or (CPU_BATCH if on_cpu else GPU_BATCH)
    return _Arithmetic(device.type, batch, (compute.threads or 1) if on_cpu else 0, torch.__version__)


def _job(request: Request, model: teacher.Teacher, provenance: dict[str, Any], arithmetic: _Arithmetic) -> _Job:
    stage = f"embed/{provenance['kind']}-{request.split}"
    return _Job(request, embed.prepare(stage, model, request.table, request.views, provenance, arithmetic))


def _fill(
    name: str, jobs: list[_Job], encoder: embed.ImageEncoder, transform: ViewTransform, threads: int, batch: int
) -> None:
    """Fill this process's share: every world_size-th shard of each job, the first one turning with the job."""
    rank, world = distributed.rank(), distributed.world_size()
    shares = [[s for s in job.work.pending() if (s + turn) % world == rank] for turn, job in enumerate(jobs)]
    total = sum(_rows(job, share) for job, share in zip(jobs, shares, strict=True))
    with _progress(name + (f" (process 1 of {world})" if world > 1 else ""), total, rank == 0) as advance:
        for job, share in zip(jobs, shares, strict=True):
            source = embed.ViewSource(job.request.table, job.request.views, transform, threads)
            embed.fill(job.work, share, source, encoder, batch, advance)


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
