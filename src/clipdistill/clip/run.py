"""Embedding as a stage: prepare the work folders, share their shards between processes, seal the results."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from clipdistill import distributed, stage
from clipdistill.clip import embed, teacher, views
from clipdistill.clip.encoder import ImageEncoder, default_batch
from clipdistill.clip.pixels import ViewSource
from clipdistill.clip.preprocessing import ViewTransform
from clipdistill.clip.views import ViewTable
from clipdistill.datasets.table import SPLITS, ImageTable
from clipdistill.errors import ClipdistillError, ParamsError
from clipdistill.params import CamViewParams, DenseViewParams, GlobalViewParams, Params, SnippetViewParams
from clipdistill.stage import Paths
from clipdistill.students import tokens
from clipdistill.work import Work

logger = logging.getLogger(__name__)

# Threads that decode, for a GPU; on a processor, where they share the cores with the lanes, one for two of those.
_GPU_WORKERS, _LANES_A_WORKER = 8, 2

# Cells a side of an encoder's map: a shard holds whole images.
_MOST_CELLS = 32


class _Arithmetic(NamedTuple):
    """What the last bit of an embedding may depend on. On a processor each batch is computed by one thread."""

    device: str
    dtype: str
    batch: int
    compiled: bool
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
    """A request, its work folder, and the shards that were not done when it was opened."""

    request: Request
    work: Work
    pending: list[int]


def requests(kind: str, params: Params) -> list[Request]:
    """Views of a kind in every split.

    Args:
        kind: "global", "snippets" or "dense".
        params: all parameters.

    Raises:
        ParamsError: an unknown kind, or images of a size that the teacher does not take.
    """
    if kind not in ("global", "snippets", "dense"):
        raise ParamsError(f"unknown kind of view {kind!r}; here there are global, snippets and dense")
    paths = Paths(params.dataset.name)
    grid = _grid(params) if kind == "dense" else 0
    found = []
    for split in SPLITS:
        table = ImageTable.load(paths.table(split))
        if kind == "dense":
            boxes = views.cells(table, grid)
        else:
            boxes = views.whole(table) if kind == "global" else views.snippets(table, params.views.snippets)
        found.append(Request(split, table, boxes, paths.embeddings(split, kind)))
    return found


def _grid(params: Params) -> int:
    """Cells a side of the teacher's map, which its weights have no part in."""
    teacher.register_architectures()
    model = teacher.create(params.clip.model)
    size = _dense_size(params, teacher.preprocessing_of(model).size, model.visual)
    grid = tokens.cells_a_side(model.visual, size)
    if grid > _MOST_CELLS:
        raise ParamsError(
            f"views.dense.image_size: {size} pixels give {grid} cells a side, and more than {_MOST_CELLS} are not "
            "embedded at once; take smaller images, or snippets"
        )
    return grid


def _dense_size(params: Params, own: int, tower: tokens.Tower) -> int:
    wanted = params.views.dense.image_size
    size = own if wanted == "clip" else wanted
    tokens.require_side(tower, params.clip.model, own, size, "views.dense.image_size", "set it to clip")
    return size


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

    Called in one process it prepares, starts `command` once for each process where there are several (on a CPU there
    is one unless told otherwise: its lanes use all cores), and seals. Called by several, as torchrun starts them, each
    fills its shards; the first waits for the others' and seals.

    Args:
        kind: "global", "snippets", "dense" or "cam".
        wanted: what is to be embedded.
        params: all parameters.
        command: a script and its arguments that call this function in the same way.

    Raises:
        ClipdistillError: what loading, reading or writing refuses.
    """
    embedding = _Embedding(kind, wanted, params)
    stage.count("views", sum(embedding.pending_views))
    if distributed.world_size() > 1:
        # Nobody may begin or seal before all have seen what there is to do. Gloo, since NCCL has one process a GPU.
        with distributed.process_group(torch.device("cpu")):
            distributed.barrier()
    if not distributed.launch_where_several(command, embedding.compute, at_most=len(embedding.pending_views)):
        embedding.fill(embedding.share(distributed.rank(), distributed.world_size()))
    if distributed.world_size() > 1 or distributed.is_leader():
        embedding.wait()
    if distributed.is_leader():
        embedding.seal()


def fill_views(kind: str, wanted: list[Request], params: Params) -> None:
    """Embed this process's share of the views into the work folder, and leave the rest to others.

    For machines that share a file system and nothing else: process RANK of WORLD_SIZE, whenever it runs, without a
    word to the others, and so it goes by the shards' numbers. `embed_views` then finds the finished shards, makes those
    that are missing, and seals.

    Args:
        kind: "global" or "snippets".
        wanted: what is to be embedded.
        params: all parameters.

    Raises:
        ClipdistillError: what loading, reading or writing refuses.
        ParamsError: RANK is no number below WORLD_SIZE.
    """
    rank, world = distributed.rank(), distributed.world_size()
    if not 0 <= rank < world:
        raise ParamsError(f"RANK is {rank} and WORLD_SIZE {world}: the ranks are 0 to {world - 1}")
    embedding = _Embedding(kind, wanted, params)
    embedding.fill([[s for s in job.pending if (s + turn) % world == rank] for turn, job in enumerate(embedding.jobs)])


class _Embedding:
    """Views of one kind, the teacher that looks at them, and their work folders."""

    def __init__(self, kind: str, wanted: list[Request], params: Params) -> None:
        self.compute = distributed.Compute.load()
        device = self._device = self.compute.torch_device()
        self._kind, self._precision = kind, params.clip.precision
        self._teacher = teacher.load(params.clip)
        if kind == "dense":
            own = self._teacher.preprocessing
            size = _dense_size(params, own.size, self._teacher.model.visual)
            self._teacher = replace(self._teacher, preprocessing=replace(own, size=size))
        self._section = _section(kind, params)
        self._arithmetic = _arithmetic(params, self.compute, device, self._teacher.preprocessing.size)
        settings = {"kind": kind, "precision": params.clip.precision, "dtype": self._arithmetic.dtype}
        provenance = settings | {"views": self._section.model_dump()}
        self.jobs = [_job(request, self._teacher, provenance, self._arithmetic) for request in wanted]

    @property
    def pending_views(self) -> list[int]:
        """Number of views of each shard that was not done when this began."""
        return [_rows(job, [shard]) for job in self.jobs for shard in job.pending]

    def share(self, rank: int, world: int) -> list[list[int]]:
        """Shards of each job that are a process's own.

        All have the same list, so that what an earlier run has left is shared out evenly.
        """
        return [job.pending[(rank + turn) % world :: world] for turn, job in enumerate(self.jobs)]

    def fill(self, shares: list[list[int]]) -> None:
        """Fill this process's shards of each job."""
        if not any(shares):
            return
        rank, world = distributed.rank(), distributed.world_size()
        batch, on_gpu = self._arithmetic.batch, self._device.type == "cuda"
        compiled, dense = batch if self.compute.compile else None, self._kind == "dense"
        encoder = ImageEncoder(self._teacher, self._precision, self._device, compiled, cells=dense)
        transform = ViewTransform(self._teacher.preprocessing, self._section.resize)
        lanes = self.compute.thread_count()
        workers = self.compute.workers or (min(_GPU_WORKERS, lanes) if on_gpu else -(-lanes // _LANES_A_WORKER))
        total = sum(_rows(job, share) for job, share in zip(self.jobs, shares, strict=True))
        name = f"embed@{self._kind}" + (f" (process {rank + 1} of {world})" if world > 1 else "")
        with _progress(name, total, logger.isEnabledFor(logging.INFO)) as advance:
            for job, share in zip(self.jobs, shares, strict=True):
                table, seen = job.request.table, job.request.views
                cells = (seen.uniform_count or 1) if dense else 1
                looked_at = views.whole(table) if dense else seen
                source = ViewSource(table, looked_at, transform, workers, pinned=on_gpu)
                embed.fill(job.work, share, source, encoder, batch, lanes, advance, cells)

    def wait(self) -> None:
        """Wait for the shards of the other processes.

        By looking, and not by a barrier: that would give up after minutes, and the slowest process may need hours. All
        wait, since torchrun ends what still runs on a machine five minutes after the work of another one is over.

        Raises:
            ClipdistillError: for `compute.patience` seconds no shard got done.
        """
        left, since = self._unmarked(), time.monotonic()
        while left:
            if time.monotonic() - since > self.compute.patience:
                raise ClipdistillError(
                    f"embed@{self._kind}: for {self.compute.patience} seconds none of the {left} shards that are "
                    f"missing got done: {self._late()}. Run the stage again, it goes on where it was"
                )
            time.sleep(1)
            before, left = left, self._unmarked()
            since = time.monotonic() if left < before else since

    def _unmarked(self) -> int:
        return sum(job.work.unmarked() for job in self.jobs)

    def _late(self) -> str:
        world = distributed.world_size()
        missing = [set(job.work.pending()) for job in self.jobs]
        late = [rank for rank in range(world) if any(map(set.intersection, missing, map(set, self.share(rank, world))))]
        names = ", ".join(map(str, late))
        return f"process {names} (of {world}, from 0) has ended or hangs" if world > 1 else "a process ended or hangs"

    def seal(self) -> None:
        """Check all shards and put the artifacts in place."""
        # None is put there before all are whole: DVC empties the places of all of them when one has to be made again.
        for job in self.jobs:
            job.work.finish()
        for job in self.jobs:
            job.work.publish(job.request.out)


def _section(kind: str, params: Params) -> GlobalViewParams | SnippetViewParams | CamViewParams | DenseViewParams:
    if kind == "global":
        return params.views.whole
    if kind == "dense":
        return params.views.dense
    return params.views.snippets if kind == "snippets" else params.views.cam


def _arithmetic(params: Params, compute: distributed.Compute, device: torch.device, size: int) -> _Arithmetic:
    dtype = distributed.resolve_precision(params.clip.precision, device)
    batch = compute.batch_size or default_batch(size, device)
    name = str(dtype).removeprefix("torch.")
    return _Arithmetic(device.type, name, batch, compute.compile, torch.__version__)


def _job(request: Request, model: teacher.Teacher, provenance: dict[str, Any], arithmetic: _Arithmetic) -> _Job:
    name = f"embed/{provenance['kind']}-{request.split}"
    work = embed.prepare(name, model, request.table, request.views, provenance, arithmetic)
    return _Job(request, work, work.pending())


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
