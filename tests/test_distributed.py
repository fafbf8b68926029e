import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from clipdistill import distributed
from clipdistill.distributed import Compute
from clipdistill.errors import ClipdistillError, ParamsError

VARIABLES = ("DEVICE", "PROCESSES", "WORKERS", "THREADS", "BATCH_SIZE", "COMPILE", "NODES", "RENDEZVOUS", "NODE_RANK")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [f"CLIPDISTILL_{variable}" for variable in VARIABLES] + ["RANK", "WORLD_SIZE", "LOCAL_RANK"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_single_process_needs_no_environment() -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (0, 1, 0)
    with distributed.process_group(torch.device("cpu")), distributed.first_rank_first():
        distributed.barrier()
    assert not torch.distributed.is_initialized()


def test_the_module_is_imported_without_torch() -> None:
    distributed.launch(["-c", "import sys, clipdistill.distributed; sys.exit('torch' in sys.modules)"], 1)


def test_defaults_where_nothing_is_set() -> None:
    assert Compute.load() == Compute()
    assert Compute.load().worker_count() == distributed.cores()


def test_the_environment_stands_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("compute.yaml").write_text("device: cpu\nthreads: 3\nworkers: null\n")
    monkeypatch.setenv("CLIPDISTILL_THREADS", "2")
    monkeypatch.setenv("CLIPDISTILL_PROCESSES", "")
    compute = Compute.load()
    assert compute == Compute(device="cpu", threads=2)
    assert compute.thread_count() == 2


def test_threads_and_workers_are_shared_between_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert (Compute().thread_count(), Compute().worker_count()) == (2, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "9")
    assert Compute().thread_count() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus: 2", r"compute\.yaml: gpus: unknown key; known here: device, processes"),
        ("device: tpu", r"compute\.yaml: device: .*'auto', 'cpu' or 'cuda'.*'tpu'"),
        ("threads: 0", r"compute\.yaml: threads: .*greater than or equal to 1.*0"),
        ("- cpu", "must hold `key: value` lines"),
        ("device: [", "must hold `key: value` lines"),
    ],
)
def test_settings_that_mean_nothing_are_refused(text: str, message: str) -> None:
    Path("compute.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message):
        Compute.load()


def test_a_refused_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPDISTILL_WORKERS", "many")
    with pytest.raises(ParamsError, match=r"\$CLIPDISTILL_WORKERS: workers: .*'many'"):
        Compute.load()


def test_processes_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "cores", lambda: 5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert Compute().process_count(cpu) == 1
    assert Compute().process_count(cuda) == 4
    assert Compute(processes=3).process_count(cuda) == 3


@pytest.mark.parametrize(
    ("variables", "leads"),
    [
        ({}, True),
        ({"CLIPDISTILL_NODE_RANK": "0"}, True),
        ({"CLIPDISTILL_NODE_RANK": "1"}, False),
        ({"RANK": "0"}, True),
        ({"RANK": "0", "CLIPDISTILL_NODE_RANK": "1"}, True),
        ({"RANK": "1"}, False),
        ({"RANK": "0", "CLIPDISTILL_LAUNCHED": "1"}, False),
    ],
)
def test_one_process_of_all_leads(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], leads: bool) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed.is_leader() == leads


def test_several_nodes_need_a_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPDISTILL_NODES", "2")
    with pytest.raises(ParamsError, match="several nodes need `rendezvous`: host:port"):
        Compute.load()
    monkeypatch.setenv("CLIPDISTILL_RENDEZVOUS", "first")
    with pytest.raises(ParamsError, match=r"\$CLIPDISTILL_RENDEZVOUS: rendezvous"):
        Compute.load()
    monkeypatch.setenv("CLIPDISTILL_RENDEZVOUS", "first:29500")
    assert (Compute.load().nodes, Compute.load().rendezvous) == (2, "first:29500")


def test_no_more_processes_are_started_than_there_is_work_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[int, int]] = []
    monkeypatch.setattr(distributed, "launch", lambda _, processes, nodes, __: started.append((processes, nodes)))
    several = Compute(device="cpu", processes=8)
    assert distributed.launch_where_several([], several, at_most=3)
    assert not distributed.launch_where_several([], several, at_most=1)
    assert not distributed.launch_where_several([], several, at_most=0)
    nodes = Compute(device="cpu", processes=8, nodes=2, rendezvous="first:1")
    assert distributed.launch_where_several([], nodes, at_most=0)
    assert started == [(3, 1), (8, 2)]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Compute().torch_device() == torch.device("cpu")
    with pytest.raises(ParamsError, match="sees no GPU"):
        Compute(device="cuda").torch_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert Compute().torch_device() == torch.device("cuda", 2)
    assert Compute(device="cpu").torch_device() == torch.device("cpu")


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    for capability, dtype in (((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert distributed.resolve_precision("auto", cuda) == dtype
    for capabilities, dtype in (({"avx2": True}, torch.float32), ({"amx_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert distributed.resolve_precision("auto", cpu) == dtype
    assert distributed.resolve_precision("fp32", cuda) == torch.float32
    assert distributed.resolve_precision("bf16", cpu) == torch.bfloat16


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [0, 1, 5, 12])
def test_slices_cover_every_row_once(monkeypatch: pytest.MonkeyPatch, rows: int, world: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    covered: list[int] = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        covered.extend(range(*distributed.slice_of(rows)))
    assert covered == list(range(rows))


def test_a_failing_process_is_named_with_its_exit_code() -> None:
    with pytest.raises(ClipdistillError, match=r"process 0 \(of 1, .*ended with exit code 4") as caught:
        distributed.launch(["-c", "raise SystemExit(4)"], 1)
    assert caught.value.exit_code == 4


def test_a_killed_process_is_named_with_its_signal() -> None:
    with pytest.raises(ClipdistillError, match="ended with signal SIGKILL") as caught:
        distributed.launch(["-c", "import os; os.kill(os.getpid(), 9)"], 1)
    assert caught.value.exit_code == 137


FAILING = """
import sys, time
import torch
from clipdistill import distributed, stage
from clipdistill.errors import ArtifactError

def silently():
    if distributed.rank() == 1:
        sys.exit(4)
    time.sleep(60)

def connected():
    with distributed.process_group(torch.device("cpu")):
        if distributed.rank() == 1:
            raise ArtifactError("the cause")
        distributed.barrier()

stage.run({"silently": silently, "connected": connected}[sys.argv[1]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["silently", "connected"])
def test_one_failing_process_of_several_ends_all_and_is_named(
    tmp_path: Path, way: str, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(FAILING)
    shutil.copy(Path(__file__).resolve().parents[1] / "params.yaml", tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ClipdistillError, match=r"process 1 \(of 2, .*ended with exit code 4") as caught:
        distributed.launch([str(script), way], 2)
    assert caught.value.exit_code == 4
    assert signal.getsignal(signal.SIGTERM) == before
    assert "Traceback" not in capfd.readouterr().err


GATHERING = """
import sys
from pathlib import Path
import torch
from clipdistill import distributed
with distributed.process_group(torch.device("cpu")):
    with distributed.first_rank_first():
        order = Path(sys.argv[1]) / "order"
        order.open("a").write(str(distributed.rank()))
    for rows in (1, 4, 5):
        start, stop = distributed.slice_of(rows)
        part = torch.arange(start, stop)[:, None] * torch.tensor([1, 10])
        whole = distributed.gather_rows(part.to(torch.uint8), rows)
        assert torch.equal(whole, (torch.arange(rows)[:, None] * torch.tensor([1, 10])).to(torch.uint8)), whole
    (Path(sys.argv[1]) / f"rank-{distributed.rank()}-of-{distributed.world_size()}").touch()
"""


@pytest.mark.slow
def test_shares_of_two_processes_are_put_together(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(GATHERING)
    distributed.launch([str(script), str(tmp_path)], 2)
    assert {path.name for path in tmp_path.glob("rank-*")} == {"rank-0-of-2", "rank-1-of-2"}
    assert (tmp_path / "order").read_text() == "01"
    assert "RANK" not in os.environ
