"""Making many files with several processes, whole or not at all."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, TypeVar

from clipdistill.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Result = TypeVar("Result")

_CHUNK = 64


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Make a folder under a temporary name, and rename it when the block ends without an error.

    What a killed run left behind is removed first.

    Args:
        out: the folder's final place; one that is there is replaced.

    Yields:
        The folder to write into.

    Raises:
        ArtifactError: the disk is full or the place cannot be written.
    """
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for stale in out.parent.glob(f"{out.name}.*.partial"):
            shutil.rmtree(stale)
        partial.mkdir()
        try:
            yield partial
            if out.exists():
                shutil.rmtree(out)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"{out}: cannot be written ({error}); free space or permission, then run again") from error


def in_chunks(task: Callable[[range], Result], count: int, workers: int | None) -> Iterator[tuple[range, Result]]:
    """Run a task over the rows 0 to count - 1, split into chunks, in several processes.

    Args:
        task: takes rows and returns their result; picklable.
        count: number of rows.
        workers: processes; None: one a processor.

    Yields:
        Rows and their result, in order.

    Raises:
        ArtifactError: a process was killed.
    """
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    # Processes are started afresh: to fork one that has threads (Zarr starts some) can hang.
    context = multiprocessing.get_context("spawn")
    processes = min(workers or os.cpu_count() or 1, len(chunks))
    try:
        with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
            yield from zip(chunks, pool.map(task, chunks), strict=True)
    except BrokenProcessPool:
        raise ArtifactError(
            f"one of {processes} processes that draw images was killed, perhaps for want of memory: run again"
        ) from None


def _end_with_parent() -> None:
    """Let this process end when the one that started it was killed; a pool's process would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
