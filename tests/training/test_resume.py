import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_training import COMPUTE, Toy, before_update, contents, make_table, soft_labels, train

from clipdistill import distributed, store
from clipdistill.errors import ArtifactError
from clipdistill.params import StudentParams
from clipdistill.students import classifier, model_folder
from clipdistill.training import checkpoint
from clipdistill.training.loop import Truth
from clipdistill.training.predict import predict_scores


class PowerCutError(Exception):
    """What stops a run in these tests."""


def stop_before(update: int, patch: pytest.MonkeyPatch) -> list[int]:
    """Stop before an update; returns the updates that were begun, this one included."""
    begun: list[int] = []

    def stop(number: int) -> None:
        begun.append(number)
        if number == update:
            raise PowerCutError

    before_update(stop, patch)
    return begun


@pytest.mark.parametrize("update", [1, 4, 5, 7])
def test_goes_on_as_if_nothing_had_been(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    truth = Truth(toy[1], toy[0], toy[1])
    train(toy, tmp_path / "whole", truth=truth)
    with monkeypatch.context() as patch:
        stop_before(update, patch)
        with pytest.raises(PowerCutError):
            train(toy, tmp_path / "again", truth=truth)
    assert not (tmp_path / "again" / "model").exists()
    torch.rand(3)
    train(toy, tmp_path / "again", truth=truth)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_a_network_that_drops_blocks_at_random(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {
        "student": StudentParams(output_stride=32, backbone="efficientnet_b0", image_size=32),
        "epochs": 2,
        "batch_size": 20,
    }
    train(toy, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        stop_before(2, patch)
        with pytest.raises(PowerCutError):
            train(toy, tmp_path / "again", **settings)
    torch.rand(3)
    train(toy, tmp_path / "again", **settings)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_no_finished_epoch_is_repeated(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = stop_before(5, monkeypatch)
    with pytest.raises(PowerCutError):
        train(toy, tmp_path)
    train(toy, tmp_path)
    # Three updates an epoch: the fifth failed, and so epochs 2 and 3 came anew.
    assert len(begun) == 5 + 6


def test_a_run_that_was_finished_but_not_written(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(toy, tmp_path / "whole")

    def full_disk(*_: object) -> None:
        raise ArtifactError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(model_folder, "save", full_disk)
        with pytest.raises(ArtifactError, match="full"):
            train(toy, tmp_path / "again")
    begun = stop_before(1, monkeypatch)
    train(toy, tmp_path / "again")
    assert not begun
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_other_labels_never_take_up_a_foreign_checkpoint(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_before(4, patch)
        with pytest.raises(PowerCutError):
            train(toy, tmp_path)
    other = soft_labels(toy[1], seed=5)
    begun: list[int] = []
    before_update(begun.append, monkeypatch)
    train(toy, tmp_path, labels=other)
    assert len(begun) == 9
    assert np.array_equal(store.read_group(tmp_path / "labels").read("labels")[0], other)


def test_curves_never_mix_two_truths(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Truth(1 - toy[1])
    train(toy, tmp_path / "whole", truth=other)
    with monkeypatch.context() as patch:
        stop_before(4, patch)
        with pytest.raises(PowerCutError):
            train(toy, tmp_path / "again", truth=Truth(toy[1]))
    train(toy, tmp_path / "again", truth=other)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def flipped(content: bytes) -> bytes:
    """One bit in the middle is another: among the numbers, where no format looks."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_damaged_work_is_named(toy: Toy, tmp_path: Path, work_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_before(4, patch)
        with pytest.raises(PowerCutError):
            train(toy, tmp_path)
    (file,) = work_root.rglob(checkpoint.FILE)
    whole = file.read_bytes()
    for damaged in (whole[:1000], b"", flipped(whole)):
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"checkpoint\.pt is damaged.*remove"):
            train(toy, tmp_path)
    file.write_bytes(whole)
    state = file.parent / "labels" / "00001.npy"
    state.write_bytes(flipped(state.read_bytes()))
    with pytest.raises(ArtifactError, match=r"00001\.npy cannot be read.*checksum.*remove"):
        train(toy, tmp_path)
    state.unlink()
    with pytest.raises(ArtifactError, match=r"00001\.npy cannot be read.*remove"):
        train(toy, tmp_path)


def test_a_checkpoint_runs_no_code(toy: Toy, tmp_path: Path, work_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_before(4, patch)
        with pytest.raises(PowerCutError):
            train(toy, tmp_path)
    (file,) = work_root.rglob(checkpoint.FILE)
    buffer = io.BytesIO()
    torch.save(_Payload(), buffer)
    file.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    with pytest.raises(ArtifactError, match="damaged"):
        train(toy, tmp_path)
    assert not Path("payload-ran").exists()


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path("payload-ran").touch, ()


def _script(folder: Path, **settings: object) -> list[str]:
    script = Path(__file__).with_name("toy_training.py")
    return [str(script), json.dumps({"folder": str(folder), "images": 20} | settings)]


@pytest.mark.slow
def test_a_killed_process_ends_in_the_bytes_of_an_unharmed_one(toy: Toy, tmp_path: Path, work_root: Path) -> None:
    killed = subprocess.run([sys.executable, *_script(tmp_path / "killed", die_at=5)], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert list(work_root.rglob(checkpoint.FILE))
    assert not (tmp_path / "killed" / "model").exists()
    distributed.launch(_script(tmp_path / "killed"), 1)
    train(toy, tmp_path / "whole")
    for name in ("model", "labels", "curves"):
        assert contents(tmp_path / "killed" / name) == contents(tmp_path / "whole" / name)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """21 images in batches of 8: the last batch has 5, so the processes' shares differ."""
    params = StudentParams(output_stride=32, backbone="resnet18", image_size=64)
    recipe: dict[str, Any] = {"optimiser": "sgd", "learning_rate": 1e-3, "schedule": "constant", "epochs": 4}
    settings = {"images": 21, "student": params.model_dump(), "recipe": recipe}
    distributed.launch(_script(tmp_path / "two", **settings), 2)
    toy = make_table(tmp_path / "images", 21)
    train(toy, tmp_path / "one", student=params, **recipe)
    start = _parameters(classifier.build(params, 3, seed=0))
    one, two = (_parameters(model_folder.load(tmp_path / name / "model")[0]) for name in ("one", "two"))
    # Rounding grows from step to step; without synchronised statistics the distance is a fifth of the way.
    assert (two - one).norm() < 0.03 * (one - start).norm()
    labels = [store.read_group(tmp_path / name / "labels").read("labels") for name in ("one", "two")]
    assert labels[0].shape == (5, 21, 3)
    np.testing.assert_allclose(labels[1], labels[0], atol=2e-4)
    losses = [_losses(tmp_path / name / "curves") for name in ("one", "two")]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)
    scores = [predict_scores(tmp_path / name / "model", toy[0], COMPUTE) for name in ("one", "two")]
    print(
        "SC",
        np.abs(scores[0] - scores[1]).max(),
        (two - one).norm() / (one - start).norm(),
        np.abs(labels[1] - labels[0]).max(),
        losses,
    )
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)


def _losses(curves: Path) -> list[float]:
    lines = (curves / "plots" / "metrics" / "loss.tsv").read_text().splitlines()[1:]
    return [float(line.split("\t")[1]) for line in lines]


def _parameters(student: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
