"""Work on images in threads, a few batches ahead of who takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Batches that are worked on while the one before is used.
_AHEAD = 3


def ahead(batches: Iterable[Iterable[Item]], work: Callable[[Item], Result], workers: int) -> Iterator[list[Result]]:
    """Work on the items of batches, in threads: decoding and hashing let go of the interpreter's lock.

    Args:
        batches: of items; taken as they are needed.
        work: done for each item, in a thread; what it raises is raised here.
        workers: threads.

    Yields:
        The results of each batch, in order. What waits is dropped when nobody takes any more.
    """
    pool = ThreadPoolExecutor(workers)
    waiting: deque[list[Future[Result]]] = deque()
    try:
        for batch in batches:
            waiting.append([pool.submit(work, item) for item in batch])
            if len(waiting) > _AHEAD:
                yield _results(waiting.popleft())
        while waiting:
            yield _results(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _results(batch: list[Future[Result]]) -> list[Result]:
    return [future.result() for future in batch]
