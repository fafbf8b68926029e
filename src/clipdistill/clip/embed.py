"""The embedder: any view table to an array of unit-norm embeddings, by any number of processes.

The unit of work is a shard of the output. A process takes whole shards, no two the same one, and no batch crosses a
shard's border: so the bytes do not depend on the number of processes, on their order, or on how often a run was
killed (a batch of another composition rounds differently in its last bit).

Within a process everything overlaps: threads decode, crop and resize a few batches ahead (`clip.pixels`), lanes embed
(`clip.encoder`), and a shard is compressed and written while the next one is made.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from clipdistill import store
from clipdistill.clip.encoder import Embeddings, ImageEncoder
from clipdistill.clip.pixels import ViewSource
from clipdistill.clip.teacher import Teacher
from clipdistill.clip.views import ViewTable
from clipdistill.datasets.table import ImageTable
from clipdistill.work import Work, code_digest

Progress = Callable[[int], None]

# What stands between an image file and its embedding.
_CODE = ["layout.py", "store.py", "work.py", "datasets/images.py"]
_CODE += [f"clip/{name}.py" for name in ("embed", "encoder", "pixels", "preprocessing", "views")]

# A shard is a file. DVC's cost is per file and a killed run repeats at most the shards in flight: so at most 64 files,
# none below 1,024 views or above 65,536 (134 MB at width 1,024: two are in memory).
_MAX_FILES, _MIN_ROWS, _MAX_ROWS, _ROW_UNIT = 64, 1_024, 65_536, 64


def shard_rows(views: ViewTable) -> int:
    """Rows of a shard: a multiple of 64 whole images where all have the same number of views, and not too many."""
    rows = min(max(_MIN_ROWS, -(-len(views) // _MAX_FILES)), _MAX_ROWS)
    unit = _ROW_UNIT * (views.uniform_count or 1)
    unit = unit if unit <= _MAX_ROWS else _ROW_UNIT
    return -(-rows // unit) * unit


def prepare(
    stage: str,
    teacher: Teacher,
    table: ImageTable,
    views: ViewTable,
    provenance: dict[str, Any],
    arithmetic: Sequence[Any] = (),
) -> Work:
    """Open the work folder of an embedding array, making it if there is none for these inputs.

    Args:
        stage: stage, target and split, e.g. "embed@global/train".
        teacher: CLIP.
        table: images.
        views: their views.
        provenance: precision and view parameters.
        arithmetic: what the last bit of a sum may depend on (device, batch): not part of the artifact's provenance,
            but a killed run is not finished with another.

    Returns:
        Work with an array `embedding` float16 [V, D] to fill, and `box`, `offset` filled.
    """
    full = {**provenance, **teacher.identity, "table": table.fingerprint, "boxes": _digest(views)}
    specs = {"embedding": store.ArraySpec((len(views), _width(teacher)), "float16", shard_rows(views))}
    identity = {**full, "code": code_digest(_CODE), "rows": shard_rows(views), "arithmetic": list(arithmetic)}
    return Work(stage, identity, specs, {"box": views.box, "offset": views.offset}, full)


def _digest(views: ViewTable) -> str:
    """What tells two view tables apart: boxes may come from a network, and not from parameters alone."""
    return hashlib.sha256(views.box.tobytes() + views.offset.tobytes()).hexdigest()


def _width(teacher: Teacher) -> int:
    """Embedding width D, which not every architecture states."""
    if stated := getattr(teacher.model.visual, "output_dim", None):
        return int(stated)
    size = teacher.preprocessing.size
    with torch.inference_mode():
        return int(teacher.model.encode_image(torch.zeros(1, 3, size, size)).shape[1])


def fill(
    work: Work,
    shards: list[int],
    source: ViewSource,
    encoder: ImageEncoder,
    batch_size: int,
    lanes: int,
    progress: Progress,
    cells: int = 1,
) -> None:
    """Embed the views of the given shards and write each as soon as it is whole.

    Args:
        work: from `prepare`.
        shards: indices of unfinished shards that are this process's own, ascending.
        source: pixels of the same views; where the encoder embeds cells, of the images whose cells they are.
        encoder: CLIP's image tower.
        batch_size: views a forward pass.
        lanes: batches that a processor works on side by side, each on one core.
        progress: called with the number of views after every batch.
        cells: M, views that the encoder makes of what the source gives one of.
    """
    spec = work.specs["embedding"]
    ranges = [(start // cells, stop // cells) for start, stop in map(spec.range_of, shards)]
    whole: Embeddings | None = None
    with ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        for begin, end, part in _embedded(source, encoder, ranges, batch_size, lanes):
            start, stop = begin * cells, end * cells
            shard = start // spec.rows
            first, last = spec.range_of(shard)
            if whole is None:
                whole = np.empty((last - first, spec.shape[1]), dtype=np.float16)
            whole[start - first : stop - first] = part
            progress(stop - start)
            if stop == last:
                # One shard waits at most: where the disk is slower than the encoder, the encoder waits.
                if written is not None:
                    written.result()
                written, whole = writer.submit(work.write, shard, {"embedding": whole}), None
        if written is not None:
            written.result()


def _embedded(
    source: ViewSource, encoder: ImageEncoder, ranges: list[tuple[int, int]], batch_size: int, lanes: int
) -> Iterator[tuple[int, int, Embeddings]]:
    """Rows [start, stop) and their embeddings, in order; a batch for each lane and as many again are in the making."""
    with encoder.lanes(lanes) as pool:
        waiting: deque[tuple[int, int, Future[Embeddings]]] = deque()
        for batch in source.batches(ranges, batch_size):
            waiting.append((batch.start, batch.stop, pool.submit(encoder, batch.pixels)))
            if len(waiting) >= 2 * max(2, lanes):
                start, stop, future = waiting.popleft()
                yield start, stop, future.result()
        for start, stop, future in waiting:
            yield start, stop, future.result()
