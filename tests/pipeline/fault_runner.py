"""Stages in processes that are killed: one process imports everything once, and forks for every attempt.

A stage takes seconds to import what it needs, and twenty kills would take minutes. So a scenario runs in a process of
its own (`python fault_runner.py`-like, see test_faults.py), which forks a child for each attempt. The child is killed
with SIGKILL after a time, or by itself right before its k-th change to the file system: an audit hook counts those, and
no state of the disk between two of them is out of reach.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import runpy
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Imported before anything is forked.
import dvc.cli
import dvc.commands.repro
import dvc.repo
import dvc.stage.run
import numpy as np
import torch
import zarr

from clipdistill import store
from clipdistill.clip import embed, encoder, run
from clipdistill.datasets import format as _format
from clipdistill.training import methods

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
PRELOADED = (dvc.cli, dvc.commands.repro, dvc.repo, np, torch, zarr, encoder, run, _format, methods)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
VIEWS_LOG = Path(".work") / "views-embedded"


def small_shards() -> None:
    """Shards of 36 views instead of 1,024, so that the miniature has fifteen; and a record of the views embedded."""
    embed._MIN_ROWS, embed._ROW_UNIT = 32, 1
    encode = encoder.ImageEncoder.__call__

    def recorded(self: encoder.ImageEncoder, pixels: torch.Tensor) -> embed.Embeddings:
        with VIEWS_LOG.open("ab") as stream:
            stream.write(bytes(len(pixels)))
        return encode(self, pixels)

    encoder.ImageEncoder.__call__ = recorded


def views_embedded() -> int:
    return VIEWS_LOG.stat().st_size if VIEWS_LOG.exists() else 0


def kill_at_change(number: int, report: int) -> None:
    """Kill this process before its change `number` of the file system below the current folder (0: never).

    When it ends by itself, `report` (a pipe) has had a byte for each change.
    """
    here, own, count = str(Path.cwd()), os.getpid(), 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if not (opened or event in CHANGES) or os.getpid() != own:
            return
        path = str(arguments[0])
        if path.startswith("/") and not path.startswith(here):
            return
        count += 1
        if count == number:
            os.kill(own, signal.SIGKILL)
        os.write(report, b".")

    sys.addaudithook(hook)


@dataclass
class Child:
    """A forked process that runs a stage."""

    pid: int
    changes: int
    output: Path

    def ended(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self, seconds: float = 120.0) -> int:
        """Wait for its end, at most so long; then it is killed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (code := self.ended()) is not None:
                return code
            time.sleep(0.005)
        return self.kill()

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def changed(self) -> int:
        """Changes to the file system that it has made."""
        os.set_blocking(self.changes, False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.changes, 65_536):
                count += len(part)
        os.close(self.changes)
        return count

    def said(self) -> str:
        return self.output.read_text()


def fork(body: Callable[[], object], kill_at: int = 0, environment: Mapping[str, str] | None = None) -> Child:
    """Run `body` in a child, whose output goes to a file."""
    reading, writing = os.pipe()
    output = Path(".work") / f"output-{time.monotonic_ns()}"
    output.parent.mkdir(exist_ok=True)
    sys.stdout.flush()
    stream = output.open("w")
    pid = os.fork()
    if pid:
        os.close(writing)
        stream.close()
        return Child(pid, reading, output)
    code = 1
    try:
        os.environ.update(environment or {})
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        os.set_blocking(writing, False)
        kill_at_change(kill_at, writing)
        code = _exit_code(body)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _exit_code(body: Callable[[], object]) -> int:
    try:
        return int(body() or 0)  # type: ignore[call-overload]
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1


def stage(name: str, *arguments: str) -> Callable[[], None]:
    """The body of a stage's script."""

    def body() -> None:
        sys.argv = [f"stages/{name}.py", *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")

    return body


class ForkedStage:
    """In place of the shell that DVC starts for a stage: a forked process with everything imported."""

    def __init__(self, command: list[str] | str, env: dict[str, str], cwd: str, **_: object) -> None:
        words = (command if isinstance(command, str) else command[-1]).split()
        self.returncode = 0
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            os.environ.update(env)
            os.chdir(cwd)
            code = _exit_code(stage(words[1], *words[2:]))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def communicate(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def repro(*targets: str) -> Callable[[], int]:
    """The body of `dvc repro`, in a process group of its own with its stages."""

    class Subprocess:
        Popen = ForkedStage

    def body() -> int:
        os.setsid()
        dvc.stage.run.subprocess = Subprocess
        return int(dvc.cli.main(["repro", *targets]))

    return body


def remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def digests(*paths: Path) -> dict[str, str]:
    """SHA-256 of every file of some artifacts."""
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def whole_shards() -> dict[str, int]:
    """Markers of the finished shards, with the time of each, after a check that every one tells the truth."""
    found = {}
    for marker in Path(".work").glob("embed/*/*/done/*.json"):
        group = marker.parents[1] / "store.zarr"
        sums = json.loads(marker.read_text())
        if sums.pop("of") != f"{marker.parents[1].name}/{int(marker.stem)}":
            raise AssertionError(f"{marker} is of another shard")
        for name, digest in sums.items():
            if store.file_sha256(group / name) != digest:
                raise AssertionError(f"{marker} says that a shard is done that is not")
        found[str(marker)] = marker.stat().st_mtime_ns
    return found


def ranks(count: int) -> list[dict[str, str]]:
    """Environments of the processes of torchrun on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


@dataclass
class Attempts:
    """Attempts at one piece of work, of which each is killed at a random moment.

    Attributes:
        body: the work.
        outs: what it writes, removed before each attempt, as DVC does.
        seed: of the moments.
        processes: as torchrun starts them; one of them is killed, and then the others.
        check: called after every attempt.
        kills: how many there were.
        finished: attempts that nothing stopped.
    """

    body: Callable[[], object]
    outs: list[Path]
    seed: int
    processes: int = 1
    check: Callable[[], object] = lambda: None
    kills: int = 0
    finished: int = 0
    changes: int = 0
    seconds: float = 0.0
    said: str = field(default="", repr=False)

    def undisturbed(self) -> dict[str, str]:
        """Do the work; digests of what it gives."""
        begin = time.monotonic()
        children = self._start([0] * self.processes)
        codes = [child.wait() for child in children]
        self.said = "\n".join(child.said() for child in children)
        if any(codes):
            raise AssertionError(f"seed {self.seed}, after {self.kills} kills: ended with {codes}\n{self.said}")
        self.changes, self.seconds = children[0].changed(), time.monotonic() - begin
        self.check()
        return digests(*self.outs)

    def killed(self, times: int, share: float) -> None:
        """Kill it so many times, each after at most `share` of what an undisturbed attempt changes or takes."""
        dice = random.Random(self.seed)
        while self.kills < times:
            # Every third kill may come at any moment; were all of them early, none would be late in the work.
            part = 1.0 if self.kills % 3 == 2 else share
            victim = dice.randrange(self.processes)
            by_change = dice.random() < 0.6
            at = dice.randint(1, max(1, int(part * self.changes)))
            delay = 120.0 if by_change else dice.uniform(0, part * self.seconds)
            children = self._start([at if by_change and rank == victim else 0 for rank in range(self.processes)])
            codes = self._first_end(children, victim, delay)
            if all(code == 0 for code in codes):
                self.finished += 1
            elif -signal.SIGKILL in codes:
                self.kills += 1
            else:
                said = "\n".join(child.said() for child in children)
                raise AssertionError(f"seed {self.seed}, after {self.kills} kills: ended with {codes}\n{said}")
            for child in children:
                child.changed()
            self.check()

    def _start(self, kill_at: list[int]) -> list[Child]:
        remove(*self.outs)
        environments = ranks(self.processes) if self.processes > 1 else [{}]
        return [fork(self.body, at, place) for at, place in zip(kill_at, environments, strict=True)]

    def _first_end(self, children: list[Child], victim: int, delay: float) -> list[int]:
        """Exit codes: the victim is killed after the delay, and all others once one of them was."""
        end = time.monotonic() + delay
        codes: list[int | None] = [None] * len(children)
        while None in codes:
            codes = [child.ended() if code is None else code for child, code in zip(children, codes, strict=True)]
            if any(codes) and -signal.SIGKILL not in codes:
                return [int(code or 0) for code in codes]
            if any(codes):
                codes = [child.kill() if code is None else code for child, code in zip(children, codes, strict=True)]
            elif codes[victim] is None and time.monotonic() > end:
                codes[victim] = children[victim].kill()
            time.sleep(0.002)
        return [int(code) for code in codes if code is not None]
