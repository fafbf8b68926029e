"""First weights of a student's backbone: torchvision's, or a file's."""

from __future__ import annotations

import os
import pickle
import re
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from clipdistill.errors import ArtifactError, ParamsError
from clipdistill.params import StudentParams
from clipdistill.store import file_sha256

StateDict = dict[str, Tensor]

_KEY = "train.student.weights"

# The first release of each network's weights, never "DEFAULT", which moves with the library.
_RELEASE = "IMAGENET1K_V1"


def load_pretrained(features: nn.Module, network: nn.Module, params: StudentParams) -> str:
    """Fill a feature extractor with first weights, in place.

    Args:
        features: what is filled; its keys are those of `network`.
        network: the whole of torchvision's network. Weights of its classifier may be there or not and are not
            used, since they are for other classes.
        params: `backbone`, `weights` and `sha256`.

    Returns:
        What the weights are: "none", torchvision's full name of them, or the file's name and SHA-256.

    Raises:
        ParamsError: torchvision has no such weights of this backbone.
        ArtifactError: the weights cannot be fetched or read, are not those that the parameters name, or do not
            fit; the text names every key at odds.
    """
    if params.weights == "none":
        return "none"
    if params.weights == "imagenet":
        name, state = _imagenet(params.backbone)
    else:
        name, state = _file(Path(params.weights), params.sha256, "train.student")
    _fill(features, state, set(network.state_dict()), f"{_KEY}: {name} does not fit {params.backbone}")
    return name


def _imagenet(backbone: str) -> tuple[str, StateDict]:
    releases = torchvision.models.get_model_weights(backbone)
    if _RELEASE not in releases.__members__:
        raise ParamsError(f"{_KEY}: torchvision has no {_RELEASE} of {backbone}; use none, or a file of weights")
    weights = releases[_RELEASE]
    _refuse_altered(Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(weights.url).path).name)
    try:
        with _tensors_alone():
            # torchvision compares a new download with the digits of its SHA-256 in the file's name.
            network = torchvision.models.get_model(backbone, weights=weights, progress=False)
    except (urllib.error.URLError, OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArtifactError(
            f"{_KEY}: {weights} cannot be fetched from {weights.url} or read ({reason}); fetch the file elsewhere and "
            "name it instead of `imagenet`"
        ) from None
    return str(weights), network.state_dict()


def _refuse_altered(path: Path) -> None:
    """Compare a file that was downloaded before with the digits in its name; torchvision takes it unseen."""
    digits = re.search(r"-([0-9a-f]+)\.", path.name)
    if digits and path.is_file() and not (found := file_sha256(path)).startswith(digits[1]):
        raise ArtifactError(f"{_KEY}: {path} has SHA-256 {found}, which its name denies: remove it to fetch it again")


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """Read files without pickle's powers, where torchvision would leave it them."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def load_trunk(trunk: nn.Module, path: Path, sha256: str, key: str) -> str:
    """Fill a network of timm from a file of weights, in place; those of its classifier are not used.

    Args:
        trunk: without a classifier.
        path: .safetensors or .pth file.
        sha256: of the file.
        key: section of the parameters, with `weights` and `sha256`.

    Returns:
        The file's name and SHA-256.

    Raises:
        ArtifactError: the file cannot be read, is another, or does not fit.
    """
    name, state = _file(path, sha256, key)
    known = set(trunk.state_dict()) | {entry for entry in state if entry.startswith(("head.", "fc.", "classifier."))}
    _fill(trunk, state, known, f"{key}.weights: {name} does not fit the backbone")
    return name


def _file(path: Path, sha256: str, key: str) -> tuple[str, StateDict]:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise ArtifactError(
            f"{key}.weights: {path} cannot be read ({error.strerror}); allowed: none, imagenet, or a file of weights"
        ) from None
    if sha256 and found != sha256:
        raise ArtifactError(
            f"{key}.weights: {path} has SHA-256 {found}, but {key}.sha256 is {sha256}: nothing was loaded"
        )
    return f"{path.name} sha256:{found}", _read(path, key)


def _read(path: Path, key: str) -> StateDict:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    # What damaged files raise, in torch above all, is no short list.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArtifactError(
            f"{key}.weights: {path} is no .safetensors or .pth file of weights alone ({reason})"
        ) from None
    if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
        raise ArtifactError(
            f"{key}.weights: {path} must hold one tensor a key, as `state_dict()` of a network gives them"
        )
    return state


def _fill(features: nn.Module, state: StateDict, known: set[str], problem: str) -> None:
    wanted = features.state_dict()
    misfits = {
        # Weights saved before the counter was introduced have none; it only matters to cumulative averages.
        "missing": [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")],
        "unknown": [key for key in state if key not in known],
        "of another shape": [
            f"{key} {list(state[key].shape)} instead of {list(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in state and state[key].shape != tensor.shape
        ],
    }
    if any(misfits.values()):
        raise ArtifactError(
            "\n".join([problem, *(f"  {kind}: {_some(keys)}" for kind, keys in misfits.items() if keys)])
        )
    features.load_state_dict({key: state.get(key, tensor) for key, tensor in wanted.items()})


def _some(keys: list[str], limit: int = 8) -> str:
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + rest
