"""What a command says beside its result, all on stderr: log lines, and how far it is."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

# Seconds between lines where there is no terminal for a bar.
_LINE_EVERY = 10.0


def set_up(quiet: bool, verbose: bool) -> None:
    """Choose what is logged: errors alone, what was done (neither), or also on what and how long."""
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=max(level, logging.WARNING), format="%(message)s", stream=sys.stderr)
    logging.getLogger("clipdistill").setLevel(level)


def tell_unchosen(classes: Sequence[str]) -> None:
    """Say which classes have the default threshold for want of a better one: they are hardly ever predicted."""
    if classes:
        logger.info("no threshold could be chosen for %s: 0.5 stands in for it", ", ".join(classes))


@contextmanager
def progress(total: int, unit: str, free: bool) -> Iterator[Callable[[bool], None]]:
    """Show progress for a block, unless the log is quiet: a bar on a terminal, elsewhere a line every ten seconds.

    Args:
        total: how many.
        unit: of what.
        free: whether the terminal is free for a bar; not where the result is written to it meanwhile.

    Yields:
        What is called after each one with whether it could be done.
    """
    shown = logger.isEnabledFor(logging.INFO)
    begin, done, failed = time.monotonic(), 0, 0

    def rate() -> float:
        return done / max(time.monotonic() - begin, 1e-9)

    if shown and free and sys.stderr.isatty():
        left = (TimeRemainingColumn(),)
        # Without colour the part of the bar that is to come is blank: its ends show where it is.
        ends = ("[", "]") if os.environ.get("NO_COLOR") else ("", "")
        text = "{task.completed}/{task.total} {task.description}, {task.fields[rate]}/s"
        columns = (TextColumn(ends[0]), BarColumn(), TextColumn(ends[1]), TextColumn(text))
        # The result goes to stdout, wherever that leads; rich would draw it into its own terminal.
        bar = Progress(*columns, *left, console=Console(stderr=True), transient=True, redirect_stdout=False)
        with bar:
            task = bar.add_task(unit, total=total, rate="0")

            def advance(good: bool) -> None:
                nonlocal done, failed
                done, failed = done + 1, failed + (not good)
                bar.update(task, advance=1, rate=f"{rate():.0f}")

            yield advance
    else:
        last = begin

        def count(good: bool) -> None:
            nonlocal done, failed, last
            done, failed = done + 1, failed + (not good)
            if time.monotonic() - last > _LINE_EVERY:
                last = time.monotonic()
                logger.info("%d of %d %s, %.0f/s", done, total, unit, rate())

        yield count
    if total:
        good = done - failed
        what = unit.removesuffix("s") if good == 1 else unit
        logger.info("%d %s in %.1f s, %.0f/s", good, what, time.monotonic() - begin, rate())
