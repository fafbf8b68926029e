"""Stages in forks of a process that has imported the heavy libraries: `python stage_server.py SOCKET`.

A stage takes seconds to import torch and the like, a pipeline has sixty of them, and the tests run it many times over.
So stage_client.py stands where `python` and `dvc` would, and hands this process a command line with its folder, its
environment and its standard streams; a fork goes on as the real Python would have begun: with the script as
`__main__`, its folder and $PYTHONPATH before all else to import from. Nothing of this project is imported before the
fork, since every project of the tests has its own copy of src/, which a test may change.

What a fork cannot show is what a true start could break: imports that lack, and an order of sets and of dictionaries'
keys that differs from process to process (forks share the seed of their hashes). Tests of faults, and those that
compare bytes with the ones of a stage that was served, run the real Python.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import socket
import struct
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

# What the stages and DVC import. A name that lacks here costs time in each fork, and nothing else.
HEAVY = """torch torch._dynamo torch.distributed.launcher.api torch.utils.data torchvision open_clip timm torchmetrics
zarr numcodecs pyarrow.parquet pyarrow.dataset safetensors.torch safetensors.numpy sklearn.metrics peft dvclive jinja2
typer pydantic.main yaml rich defusedxml.ElementTree PIL.Image PIL.ImageDraw zoneinfo
dvc.cli.parser dvc.repo dvc.repo.graph dvc.repo.index dvc.repo.metrics.show dvc.repo.params.show dvc.repo.plots
dvc.repo.experiments.utils dvc.data_cloud dvc.lock dvc.scm networkx pyparsing"""


@dataclass
class Request:
    """A command line and where it was typed; `streams` are its stdin, stdout and stderr."""

    words: list[str]
    folder: str
    environment: dict[str, str]
    streams: list[int]


def main() -> None:
    """Serve until stdin closes; in a fork, run what was asked for."""
    address = Path(sys.argv[1])
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(address.parent)
        listener.bind(address.name)
        listener.listen()
        print("listening", flush=True)
        for name in HEAVY.split():
            importlib.import_module(name)
        _read_locks_plainly()
        # Pages that no fork's collector writes to stay shared.
        gc.freeze()
        request = _next_request(listener)
    # Only a fork comes here. It ends as Python does, but takes nothing apart: with so much imported that takes long.
    _become(request)
    code = _run(str(Path(sys.argv[0]).absolute()))
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _read_locks_plainly() -> None:
    """Let DVC read lock files as it reads everything else, not so that comments are kept: they have none.

    It does so anew for each stage that it adds, which takes it longer than many a stage; it writes the same bytes.
    """
    from dvc.utils.serialize import _yaml

    of_others = _yaml.parse_yaml_for_update

    def parse(text: str, path: str) -> object:
        return (_yaml.parse_yaml if str(path).endswith("dvc.lock") else of_others)(text, path)

    _yaml.parse_yaml_for_update = parse


def _next_request(listener: socket.socket) -> Request:
    """Wait for requests for ever; this returns in forks alone, each with a request of its own."""
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            return _attended(connection)
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _attended(connection: socket.socket) -> Request:
    """Fork once more: the child returns with the request, this process looks after it and never returns."""
    request = _receive(connection)
    child = os.fork()
    if not child:
        connection.close()
        return request
    _own_group(child)
    for stream in request.streams:
        os.close(stream)
    threading.Thread(target=_pass_signals, args=(connection, child), daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        connection.sendall(struct.pack("i", code))
    os._exit(0)


def _receive(connection: socket.socket) -> Request:
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    (size,) = struct.unpack("i", head)
    return Request(**json.loads(connection.recv(size, socket.MSG_WAITALL)), streams=streams)


def _pass_signals(connection: socket.socket, child: int) -> None:
    """Give a child the signals that its client got; kill it, with what it has started, when the client is gone."""
    with suppress(ConnectionResetError, ProcessLookupError):
        while number := connection.recv(1):
            os.kill(child, number[0])
    with suppress(ProcessLookupError):
        os.killpg(child, SIGKILL)


def _own_group(process: int) -> None:
    """Make a fork the first of a process group: it calls this, and so does its parent, since either may be late."""
    with suppress(ProcessLookupError):
        os.setpgid(process, process)


def _become(request: Request) -> None:
    """Take on a request's streams, folder, environment and command line."""
    _own_group(os.getpid())
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)  # type: ignore[attr-defined]
    sys.argv = request.words
    # In place of this file's own folder, which the interpreter put first.
    named = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:1] = [str(Path(sys.argv[0]).resolve().parent), *map(os.path.abspath, named)]
    importlib.invalidate_caches()


def _run(script: str) -> int:
    """Run a script as Python would; its exit code."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    main()
