import hashlib
import io
import os
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from clipdistill.errors import ArtifactError, ParamsError
from clipdistill.params import StudentParams
from clipdistill.students import classifier, weights

NAME = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Weights as torchvision publishes them, with a classifier for 1,000 classes."""
    torch.manual_seed(11)
    return dict(torchvision.models.get_model(NAME).state_dict())


def build(weights: Path | str, sha256: str = "") -> classifier.Student:
    path = Path(weights)
    known = sha256 or (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "0" * 64)
    own = "" if str(weights) in ("none", "imagenet") else known
    return classifier.build(StudentParams(output_stride=32, backbone=NAME, weights=str(weights), sha256=own), 5, seed=0)


def write(path: Path, state: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("with_classifier", [True, False])
def test_a_file_fills_the_backbone_and_not_the_head(
    tmp_path: Path, published: dict[str, Tensor], name: str, with_classifier: bool
) -> None:
    state = {key: value for key, value in published.items() if with_classifier or not key.startswith("fc.")}
    path = write(tmp_path / name, state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    student = build(path, digest)
    features = student.features.state_dict()
    assert all(torch.equal(value, published[key]) for key, value in features.items())
    assert student.head.out_channels == 5
    assert student.weights == f"{name} sha256:{digest}"


def test_old_weights_without_counters_fit(tmp_path: Path, published: dict[str, Tensor]) -> None:
    state = {key: value for key, value in published.items() if not key.endswith("num_batches_tracked")}
    student = build(write(tmp_path / "old.pth", state))
    assert torch.equal(student.features.state_dict()["conv1.0.weight"], published["conv1.0.weight"])


def test_another_hash_loads_nothing(tmp_path: Path, published: dict[str, Tensor]) -> None:
    path = write(tmp_path / "weights.safetensors", published)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ArtifactError, match=f"{found}, but train.student.sha256 is {'0' * 64}"):
        build(path, "0" * 64)


def test_keys_that_do_not_fit_are_named(tmp_path: Path, published: dict[str, Tensor]) -> None:
    state = dict(published)
    del state["conv5.0.weight"]
    state["conv1.0.weight"] = torch.zeros(24, 4, 3, 3)
    state["surprise"] = torch.zeros(1)
    with pytest.raises(ArtifactError) as caught:
        build(write(tmp_path / "weights.pth", state))
    text = str(caught.value)
    assert "missing: conv5.0.weight" in text
    assert "unknown: surprise" in text
    assert "of another shape: conv1.0.weight [24, 4, 3, 3] instead of [24, 3, 3, 3]" in text


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    torch.save(_Payload(tmp_path / "payload-ran"), tmp_path / "weights.pth")
    with pytest.raises(ArtifactError, match=r"is no \.safetensors or \.pth file of weights alone"):
        build(tmp_path / "weights.pth")
    assert not (tmp_path / "payload-ran").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\x00" * 100])
def test_other_files_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ArtifactError, match="weights alone"):
        build(tmp_path / name)


def test_a_nested_checkpoint_is_refused(tmp_path: Path, published: dict[str, Tensor]) -> None:
    torch.save({"state_dict": published, "epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(ArtifactError, match="must hold one tensor a key"):
        build(tmp_path / "weights.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere\.pth cannot be read .*none, imagenet, or a file"):
        build(tmp_path / "nowhere.pth")


def test_imagenet_is_one_release_by_name(monkeypatch: pytest.MonkeyPatch, published: dict[str, Tensor]) -> None:
    make = torchvision.models.get_model
    asked = []

    def fetch(name: str, weights: WeightsEnum | None = None, **_: object) -> torch.nn.Module:
        network = make(name)
        if weights is not None:
            asked.append(weights)
            network.load_state_dict(published)
        return network

    monkeypatch.setattr(torchvision.models, "get_model", fetch)
    student = build("imagenet")
    assert student.weights == "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
    assert [str(weights) for weights in asked] == [student.weights]
    assert torch.equal(student.features.state_dict()["conv1.0.weight"], published["conv1.0.weight"])


def test_without_a_network_imagenet_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    make = torchvision.models.get_model

    def fetch(name: str, weights: WeightsEnum | None = None, **_: object) -> torch.nn.Module:
        if weights is not None:
            raise urllib.error.URLError("no route")
        return make(name)

    monkeypatch.setattr(torchvision.models, "get_model", fetch)
    with pytest.raises(ArtifactError, match=r"cannot be fetched from https://download.*no route.*fetch the file"):
        build("imagenet")


class _Answer(io.BytesIO):
    """Of a server."""

    def info(self) -> Message:
        return Message()


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torchvision keeps its download; the server has nothing."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_, **__: _Answer(b"<html>not found</html>"))
    path = tmp_path / "hub" / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"
    path.parent.mkdir(parents=True)
    return path


def test_a_download_that_is_not_what_its_name_says_is_not_kept(fetched: Path) -> None:
    with pytest.raises(ArtifactError, match=r'cannot be fetched .*invalid hash value .expected "f707e7126e"'):
        build("imagenet")
    assert list(fetched.parent.iterdir()) == []


def test_an_earlier_download_that_was_altered_is_not_read(fetched: Path) -> None:
    torch.save(_Payload(fetched.parent / "payload-ran"), fetched)
    with pytest.raises(ArtifactError, match="which its name denies: remove it"):
        build("imagenet")
    assert not (fetched.parent / "payload-ran").exists()


def test_a_pickle_among_torchvisions_weights_runs_no_code(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its sum: torchvision itself unpickles what it downloads."""
    monkeypatch.setattr(weights, "file_sha256", lambda _: "f707e7126e" + "0" * 54)
    torch.save(_Payload(fetched.parent / "payload-ran"), fetched)
    with pytest.raises(ArtifactError, match=r"cannot be fetched .* or read .*Weights only load failed"):
        build("imagenet")
    assert not (fetched.parent / "payload-ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_backbone_without_that_release_is_refused() -> None:
    with pytest.raises(ParamsError, match="no IMAGENET1K_V1 of regnet_y_128gf"):
        weights._imagenet("regnet_y_128gf")
