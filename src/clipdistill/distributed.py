"""Where the work runs: device, processes, threads, and how processes find each other under torchrun.

None of this changes what is computed, so none of it stands in params.yaml: another machine must not rerun a
stage. The settings come from `compute.yaml` in the current folder, which git ignores, or from the environment
(CLIPDISTILL_DEVICE ...), which wins. docs/scale.md has the commands for several GPUs and several machines.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from clipdistill import yaml_text
from clipdistill.errors import ClipdistillError, ParamsError
from clipdistill.params import Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    # torch takes seconds to import; a stage that only asks for its rank does without.
    import torch
    from torch.distributed.distributed_c10d import Store
    from torch.distributed.launcher.api import LaunchConfig

COMPUTE_FILE = Path("compute.yaml")
COMPUTE_FILE_VARIABLE = "CLIPDISTILL_COMPUTE_FILE"
NODE_RANK_VARIABLE = "CLIPDISTILL_NODE_RANK"
_LAUNCHED_VARIABLE = "CLIPDISTILL_LAUNCHED"

# How long the machines wait for one another at the beginning of a stage, seconds.
_JOIN_TIMEOUT = 1800

# How long processes that have waited in vain wait for one another to say so, seconds.
_ROLL_CALL = 5

_roll: Store | None = None

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Count = Annotated[int, Field(ge=1)]


def rank() -> int:
    """This process's number among all, from 0 ($RANK)."""
    return _number("RANK", 0)


def world_size() -> int:
    """Number of processes ($WORLD_SIZE)."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number among those of its machine, from 0 ($LOCAL_RANK)."""
    return _number("LOCAL_RANK", 0)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ParamsError(f"${variable} must be a whole number, found {text!r}")
    return int(text)


def node_rank() -> int:
    """This machine's number among those that run a stage together, from 0 ($CLIPDISTILL_NODE_RANK)."""
    return int(os.environ.get(NODE_RANK_VARIABLE, "0"))


def is_leader() -> bool:
    """Whether this process begins and ends the stage.

    It is rank 0 of what torchrun started; or, where this project starts the ranks itself, the process on the first
    machine that started them and waits.
    """
    if "RANK" in os.environ:
        return rank() == 0 and _LAUNCHED_VARIABLE not in os.environ
    return node_rank() == 0


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Compute(Section):
    """Settings of this machine; each also as $CLIPDISTILL_<NAME>, for example CLIPDISTILL_DEVICE=cpu."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    processes: Count | None = Field(None, description="processes on this machine; null: one a GPU, one on a CPU")
    nodes: Count = Field(1, description="machines that run a stage together; each has its $CLIPDISTILL_NODE_RANK")
    rendezvous: str | None = Field(
        None, pattern=r"^[^\s:]+:\d+$", description="host:port of the first machine, where the others find it"
    )
    workers: Count | None = Field(None, description="threads a process that decode images; null: by stage")
    threads: Count | None = Field(None, description="threads a process that compute; null: its share of the cores")
    batch_size: Count | None = Field(None, description="images a pass without gradients; null: by stage")
    patience: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        1800, description="seconds without a sign of another process after which it counts as hanging"
    )
    compile: bool = Field(False, description="compile CLIP's image tower for embedding; a minute first, then faster")

    @model_validator(mode="after")
    def _nodes_find_each_other(self) -> Self:
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError("several nodes need `rendezvous`: host:port of the first machine")
        return self

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Read the settings.

        Args:
            path: YAML file; None: $CLIPDISTILL_COMPUTE_FILE, or compute.yaml here. Without one, defaults.

        Returns:
            The file's settings, with those of the environment over them.

        Raises:
            ParamsError: the file is no mapping in YAML, or a key is unknown, of a wrong type or out of range.
        """
        named = os.environ.get(COMPUTE_FILE_VARIABLE)
        if path is None and named and not Path(named).exists():
            raise ParamsError(f"${COMPUTE_FILE_VARIABLE} names {named}, which is not there")
        path = path or Path(named or COMPUTE_FILE)
        settings = _file_settings(path)
        origin = dict.fromkeys(settings, str(path))
        for name in cls.model_fields:
            variable = f"CLIPDISTILL_{name.upper()}"
            if text := os.environ.get(variable):
                settings[name] = text
                origin[name] = f"${variable}"
        try:
            # Not strict: the environment holds nothing but text.
            return cls.model_validate(settings, strict=False)
        except ValidationError as error:
            raise ParamsError(_explain(error, origin, list(cls.model_fields))) from None

    def torch_device(self) -> torch.device:
        """The device of this process; with several GPUs the one with its local rank.

        Raises:
            ParamsError: `cuda` is asked for and there is none.
        """
        import torch  # noqa: PLC0415

        if self.device == "cpu" or (self.device == "auto" and not torch.cuda.is_available()):
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise ParamsError("compute device is cuda, but PyTorch sees no GPU: set it to cpu or auto")
        return torch.device("cuda", local_rank() % torch.cuda.device_count())

    def process_count(self, device: torch.device) -> int:
        """Processes that a stage starts on this machine."""
        import torch  # noqa: PLC0415

        return self.processes or (torch.cuda.device_count() if device.type == "cuda" else 1)

    def thread_count(self) -> int:
        """Threads of the arithmetic in this process: as set, or its share of the cores. Sums round by their number."""
        return self.threads or _share_of_cores()

    def worker_count(self) -> int:
        """Threads that decode images in this process: as set, or its share of the cores."""
        return self.workers or _share_of_cores()


def _share_of_cores() -> int:
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _file_settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        settings = yaml_text.read(path)
        if settings is None:
            return {}
        if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
            raise ValueError("not a mapping of names")
        return settings
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ParamsError(f"{path} must hold `key: value` lines, for example `device: cpu` ({error})") from None


def _explain(error: ValidationError, origin: dict[str, str], known: list[str]) -> str:
    text = "compute settings refused"
    for problem in error.errors():
        if not problem["loc"]:
            text += f"\n  {problem['msg']}"
            continue
        name, unknown = str(problem["loc"][0]), problem["type"] == "extra_forbidden"
        why = f"unknown key; known here: {', '.join(known)}" if unknown else problem["msg"]
        text += f"\n  {origin[name]}: {name}: {why}, found {problem['input']!r}"
    return text


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Number format of the arithmetic.

    Args:
        precision: `auto` is bf16 where the hardware computes in it (GPUs from compute capability 8.0 on,
            processors with AVX512-BF16 or AMX), else fp32.
        device: where it runs.
    """
    import torch  # noqa: PLC0415

    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


def launch_where_several(command: list[str], compute: Compute, at_most: int | None = None) -> bool:
    """Run a stage's own script in as many processes as the machines are set to, where that is more than one.

    They are started as torchrun starts them, with $RANK, $WORLD_SIZE and $LOCAL_RANK set; when one fails the others
    are ended. Their output passes through.

    Args:
        command: script and arguments, or "-m", module and arguments.
        compute: device, processes, machines and their rendezvous.
        at_most: processes that there is work for; where machines share the work it does not count.

    Returns:
        Whether it was done; if not, this process is to do the work itself.

    Raises:
        ClipdistillError: a process failed; the text names its rank and exit code, which is also the error's.
    """
    if world_size() > 1:
        return False
    processes = compute.process_count(compute.torch_device())
    if compute.nodes == 1 and at_most is not None:
        processes = min(processes, at_most)
    if processes * compute.nodes <= 1:
        return False
    launch(command, processes, compute.nodes, compute.rendezvous)
    return True


def launch(command: list[str], processes: int, nodes: int = 1, rendezvous: str | None = None) -> None:
    """Run a Python script or module in several processes, and wait for all of them.

    Args:
        command: script and arguments, or "-m", module and arguments.
        processes: how many on this machine.
        nodes: machines that do so.
        rendezvous: host:port of the first of them.

    Raises:
        ClipdistillError: a process failed; the text names its rank and exit code, which is also the error's.
    """
    from torch.distributed.elastic.multiprocessing import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.elastic.rendezvous import RendezvousError  # noqa: PLC0415
    from torch.distributed.launcher.api import elastic_launch  # noqa: PLC0415

    # The launcher replaces the handlers of these signals and does not put them back.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    os.environ[_LAUNCHED_VARIABLE] = str(os.getpid())
    try:
        elastic_launch(_launch_config(command, processes, nodes, rendezvous), sys.executable)(*command)
    except ChildFailedError as error:
        failed, failure = error.get_first_failure()
        _fail(command, failed, processes * nodes, failure.exitcode)
    except RendezvousError as error:
        where = f"machine {node_rank()} of {nodes}, rendezvous {rendezvous}"
        raise ClipdistillError(
            f"{where}: the machines did not find one another ({error}). Each has to run the same stage with its own "
            f"${NODE_RANK_VARIABLE}, the first one at the rendezvous"
        ) from None
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + error.sigval)
    finally:
        del os.environ[_LAUNCHED_VARIABLE]
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_with_launcher() -> None:
    """Let a process that `launch` started end when the one that started it was killed.

    Nobody else would end it, and the next run would find it at work in the same folders.
    """
    if launcher := os.environ.get(_LAUNCHED_VARIABLE):
        threading.Thread(target=_watch, args=(int(launcher),), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


def _launch_config(command: list[str], processes: int, nodes: int, rendezvous: str | None) -> LaunchConfig:
    from torch.distributed.launcher.api import LaunchConfig  # noqa: PLC0415

    place: dict[str, Any] = {"rdzv_endpoint": "localhost:0", "local_addr": "localhost", "run_id": str(uuid.uuid4())}
    if nodes > 1:
        # Machines that run another stage must not be taken for partners: the run is named after the stage.
        name = "-".join(Path(word).name for word in command)
        waits = {"join_timeout": _JOIN_TIMEOUT, "read_timeout": _JOIN_TIMEOUT, "is_host": node_rank() == 0}
        place = {"rdzv_endpoint": rendezvous, "rdzv_configs": waits, "run_id": name}
    return LaunchConfig(nodes, nodes, processes, rdzv_backend="c10d", max_restarts=0, **place)


def _fail(command: list[str], failed: int, processes: int, code: int) -> NoReturn:
    how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
    name = f"process {failed} (of {processes}, from 0) of `{' '.join(command)}`"
    error = ClipdistillError(f"{name} ended with {how}; its own message stands above")
    error.exit_code = code if code > 0 else 128 - code
    raise error


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Connect the processes, where there are several, for a block: gloo carries tensors on CPUs, NCCL those on GPUs.

    The connection stays until the process ends, and later blocks use it: torchrun's store keeps the keys of the first
    one, and a second one would find them. So the first block of a process names the device of all of them.
    """
    if world_size() == 1:
        yield
        return
    import torch.distributed as dist  # noqa: PLC0415

    try:
        if not dist.is_initialized():
            _connect(device)
        yield
    except RuntimeError as error:
        if "gloo" in str(error) and "by peer" in str(error):
            # The launcher takes the first process that it sees end for the cause: the other one must be seen first.
            time.sleep(2)
            raise ClipdistillError(f"process {rank()} stops, since another one has ended; that one says why") from None
        if "timed out" in str(error).lower():
            raise ClipdistillError(_nobody_there()) from None
        raise


def _nobody_there() -> str:
    """What to say where a word from another process did not come: which ones have not found out the same."""
    silent = "another"
    if _roll is not None:
        # Where the process that keeps the roll hangs itself, there is no answer.
        with suppress(RuntimeError):
            _roll.set(str(rank()), "")
            time.sleep(_ROLL_CALL)
            silent = ", ".join(str(other) for other in range(world_size()) if not _roll.check([str(other)])) or silent
    return (
        f"process {rank()} (of {world_size()}, from 0) has had no word for {Compute.load().patience} seconds from "
        f"process {silent}, which hangs or has lost its machine: run the stage again, it goes on where it was"
    )


def _connect(device: torch.device) -> None:
    global _roll  # noqa: PLW0603 - there is one connection a process, as PyTorch has it
    import torch.distributed as dist  # noqa: PLC0415
    from torch.distributed.distributed_c10d import PrefixStore  # noqa: PLC0415
    from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415

    patience = timedelta(seconds=Compute.load().patience)
    meeting, _, _ = next(rendezvous("env://", timeout=patience))
    _roll = PrefixStore("roll", meeting)
    _roll.set_timeout(timedelta(seconds=_ROLL_CALL))
    settings: dict[str, Any] = {
        "store": PrefixStore("group", meeting),
        "rank": rank(),
        "world_size": world_size(),
        "timeout": patience,
    }
    if device.type == "cuda":
        import torch  # noqa: PLC0415

        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if here > torch.cuda.device_count():
            raise ParamsError(
                f"compute: {here} processes cannot train together on {torch.cuda.device_count()} GPUs of this machine, "
                "one a GPU at most: set processes"
            )
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, **settings)
    else:
        dist.init_process_group("gloo", **settings)
    atexit.register(dist.destroy_process_group)


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        import torch.distributed as dist  # noqa: PLC0415

        dist.barrier()


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Let rank 0 run a block before the others, so that a file is fetched once."""
    if rank() != 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def slice_of(rows: int) -> tuple[int, int]:
    """This process's share of `rows` rows: first, and one after the last.

    Equal runs in rank order, the last ones shorter or empty.
    """
    size = -(-rows // world_size())
    start = min(rank() * size, rows)
    return start, min(start + size, rows)


def gather_rows(part: torch.Tensor, rows: int) -> torch.Tensor:
    """Put the processes' shares together, in row order, for every process.

    Args:
        part: this process's rows `slice_of(rows)`, [n, ...], on the CPU.
        rows: of the whole.

    Returns:
        [rows, ...], on the CPU, no row twice.
    """
    if world_size() == 1:
        return part
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    size = -(-rows // world_size())
    padded = part.new_zeros((size, *part.shape[1:]))
    padded[: len(part)] = part
    whole = part.new_empty((world_size() * size, *part.shape[1:]))
    dist.all_gather(list(torch.split(whole, size)), padded)
    return whole[:rows]


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum of the processes' tensors, which have one shape and lie on the CPU; every process gets it."""
    if world_size() > 1:
        import torch.distributed as dist  # noqa: PLC0415

        dist.all_reduce(values)
    return values
