"""Progress of a training run: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)


class TrainingProgress:
    """Images trained on, of all epochs; a context manager.

    Args:
        epochs: of the whole run.
        done: epochs finished in an earlier run.
        images: an epoch.
        shown: whether this process shows anything.
    """

    def __init__(self, epochs: int, done: int, images: int, shown: bool) -> None:
        self._epochs, self._images, self._shown = epochs, images, shown
        self._start = self._seen = done * images
        self._begin = time.monotonic()
        self._stack = ExitStack()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self._shown and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[rate]:,.0f} images/s"),
                TimeRemainingColumn(),
            )
            self._bar = self._stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
            total = self._epochs * self._images
            self._task = self._bar.add_task("train", total=total, completed=self._seen, rate=0.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def advance(self, images: int) -> None:
        """Count images, of all processes."""
        self._seen += images
        if self._bar is not None:
            self._bar.update(self._task, completed=self._seen, rate=self._rate())

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Say how an epoch (from 1) went."""
        if not self._shown:
            return
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
        left = (self._epochs * self._images - self._seen) / max(self._rate(), 1e-9)
        line = f"epoch {epoch}/{self._epochs}: {numbers}; {self._rate():.0f} images/s, {left:.0f} s left"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            logger.info(line)

    def _rate(self) -> float:
        """Images a second, with all that happens between the epochs."""
        return (self._seen - self._start) / max(time.monotonic() - self._begin, 1e-9)
