"""The teacher: one loader for published, local and self-trained CLIP models, all through open_clip.

What a cached embedding depends on is the teacher's `identity`: architecture, activation, and a digest over all its
weights. It stands in the provenance of every embedding, so that those of two teachers never mix.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import open_clip
import torch
import yaml

from clipdistill import store, yaml_text
from clipdistill.clip import adapter
from clipdistill.errors import TeacherError
from clipdistill.params import NO_ADAPTER, ClipParams

TEACHERS = Path("cache/teachers")
ARCHITECTURES = Path(__file__).parent / "architectures"

Tokenizer = Callable[[list[str]], torch.Tensor]
ClipModel: TypeAlias = Any
"""open_clip's CLIP or CustomTextCLIP, which ship no types."""

# Where open_clip keeps the embeddings of places in image and text.
_POSITIONS = ("visual.positional_embedding", "text.positional_embedding", "positional_embedding")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What the image encoder expects: side in pixels, channel means and deviations of [0, 1] values, resize mode."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen CLIP.

    Attributes:
        model: in eval mode, fp32, on the CPU.
        tokenizer: texts to token ids int64 [T, context].
        preprocessing: of its image encoder.
        logit_scale: the learnt multiplier of cosines (about 100 for published models); 1 / temperature.
        identity: JSON values that name architecture and weights, and an adapter that was added to them.
    """

    model: ClipModel
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    logit_scale: float
    identity: dict[str, Any]


def load(params: ClipParams, teachers: Path = TEACHERS) -> Teacher:
    """Load the teacher that the parameters name, with their adapter added to its weights.

    Args:
        params: section `clip`.
        teachers: folder of the teachers that the pipeline trained itself.

    Raises:
        TeacherError: unknown model or tag, no such file, a wrong checksum, weights that are of another architecture
            or activation, or not finite; or an adapter for other weights.
        ArtifactError: the adapter is missing or altered.
    """
    found = _without_adapter(params, teachers)
    if params.adapter == NO_ADAPTER:
        return found
    sha256 = adapter.merge(found.model, Path(params.adapter), found.identity["weights"])
    identity = {**found.identity, "weights": weights_digest(found.model), "adapter": sha256}
    return replace(found, identity=identity)


def _without_adapter(params: ClipParams, teachers: Path) -> Teacher:
    register_architectures()
    if params.model not in open_clip.list_models():
        raise TeacherError(f"clip.model: open_clip knows no {params.model!r}; `clipdistill models` lists what it knows")
    if params.source == "open_clip":
        return _published(params)
    if params.source == "file":
        path, sha256, quick_gelu = Path(params.weights), params.sha256, params.quick_gelu
        _require_activation(params)
    else:
        path, sha256, quick_gelu = *_self_trained(params, teachers), False
    _require_bytes(path, sha256)
    model = create(params.model, quick_gelu)
    _load_weights(model, path)
    return _wrap(model, params.model, quick_gelu)


@functools.cache
def register_architectures() -> None:
    """Make the project's own architectures known to open_clip, once in a process: it reads all of its lists again."""
    open_clip.add_model_config(ARCHITECTURES)


def create(name: str, quick_gelu: bool = False) -> ClipModel:
    """Build an architecture with random weights, in eval mode."""
    log = logging.getLogger()
    level = log.level
    # open_clip warns that the weights are random; they are replaced by the caller, or meant to be.
    log.setLevel(logging.ERROR)
    try:
        model = open_clip.create_model(name, pretrained=None, pretrained_text=False, force_quick_gelu=quick_gelu)
    finally:
        log.setLevel(level)
    return model.eval()


def _published(params: ClipParams) -> Teacher:
    tags = open_clip.list_pretrained_tags_by_model(params.model)
    if params.pretrained not in tags:
        raise TeacherError(
            f"clip.pretrained: {params.model} has no weights {params.pretrained!r}, only {', '.join(tags) or 'none'}"
        )
    # Where weights trained with QuickGELU meet an architecture without it, open_clip only warns: features are wrong.
    published = open_clip.get_pretrained_cfg(params.model, params.pretrained)
    quick_gelu = bool(published.get("quick_gelu", False)) or params.model.endswith("-quickgelu")
    try:
        _require_published_bytes(Path(open_clip.download_pretrained(published)), params.sha256)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            model = open_clip.create_model(
                params.model, pretrained=params.pretrained, force_quick_gelu=quick_gelu, weights_only=True
            )
    except TeacherError:
        raise
    # What damaged files raise in the readers of three libraries is no short list.
    except Exception as error:
        raise TeacherError(
            f"{params.model} / {params.pretrained} cannot be loaded ({error}). Without internet, fetch the file "
            "elsewhere and use clip.source = file with clip.weights and clip.sha256"
        ) from error
    return _wrap(model.eval(), params.model, quick_gelu)


def _require_published_bytes(path: Path, sha256: str) -> None:
    """Compare a download with its SHA-256: that of the parameters, and the one that the hub files it under."""
    filed = path.resolve().name
    for wanted in filter(None, (sha256, filed if re.fullmatch("[0-9a-f]{64}", filed) else "")):
        if (found := store.file_sha256(path)) != wanted:
            raise TeacherError(
                f"weights {path} have SHA-256 {found}, expected {wanted}: a broken download, which must be removed to "
                "be fetched again; or clip.sha256 is of another file"
            )


def _require_activation(params: ClipParams) -> None:
    """Refuse OpenAI's own weights, known by their sum, without the activation that they were trained with.

    Nothing in the weights tells, and the features would be wrong without any error.
    """
    if params.quick_gelu or params.model.endswith("-quickgelu"):
        return
    for name, tag in open_clip.list_pretrained():
        published = open_clip.get_pretrained_cfg(name, tag)
        if published.get("quick_gelu") and f"/{params.sha256}/" in published.get("url", ""):
            raise TeacherError(
                f"clip.weights: {params.weights} is {name} / {tag} by its SHA-256, trained with QuickGELU: set "
                "clip.quick_gelu: true"
            )


def _self_trained(params: ClipParams, teachers: Path) -> tuple[Path, str]:
    card = teachers / f"{params.source}.yaml"
    cure = "run `dvc repro stages/scenes/dvc.yaml:pretrain_clip`"
    try:
        content = yaml_text.read(card)
        architecture, sha256 = content["architecture"], content["sha256"]
    except FileNotFoundError:
        raise TeacherError(f"{card} is missing: {cure}") from None
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        raise TeacherError(f"{card} is no card of a teacher ({error}): remove it, and {cure}") from None
    if architecture != params.model:
        raise TeacherError(
            f"clip.model is {params.model!r}, but {card} holds weights of {architecture!r}: "
            "set clip.model and pretrain_clip.architecture alike"
        )
    return teachers / f"{params.source}.safetensors", sha256


def _require_bytes(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise TeacherError(f"weights {path} are missing")
    found = store.file_sha256(path)
    if found != sha256:
        raise TeacherError(f"weights {path} have SHA-256 {found}, expected {sha256}: another file, or a broken copy")


def _load_weights(model: ClipModel, path: Path) -> None:
    state = _read_weights(path)
    try:
        _require_positions(model, open_clip.factory.convert_state_dict(model, state))
        open_clip.factory.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except TeacherError:
        raise
    except Exception as error:
        raise TeacherError(f"weights {path} do not fit the architecture: {str(error)[:600]}") from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file by name; nothing in it is run."""
    try:
        if path.suffix in (".npz", ".npy"):
            raise ValueError("a NumPy file")
        state: dict[str, torch.Tensor] = open_clip.factory.load_state_dict(str(path), weights_only=True)
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError("not tensors alone")
    # See `_published`: no short list.
    except Exception as error:
        # torch explains at length how to let a file run code.
        lines = "" if type(error).__name__ == "UnpicklingError" else str(error)
        reason = next(iter(lines.splitlines()), "") or type(error).__name__
        raise TeacherError(
            f"weights {path} hold more than tensors, or none, and were not used ({reason}). They must be a whole "
            ".safetensors or .pt file of tensors by name; a TorchScript archive or a pickled model has to be converted "
            "to safetensors first"
        ) from error
    return state


def _require_positions(model: ClipModel, state: dict[str, torch.Tensor]) -> None:
    """Refuse embeddings of more or fewer places, which open_clip stretches to fit without an error."""
    own = model.state_dict()
    shapes = {name: own[name].shape for name in _POSITIONS if name in own}
    if "text.positional_embedding" in shapes:
        # Where the text tower is a module of its own, open_clip takes the plain name for it.
        shapes["positional_embedding"] = shapes["text.positional_embedding"]
    for name, shape in shapes.items():
        if name in state and state[name].shape != shape:
            raise ValueError(f"{name} is {list(state[name].shape)} in place of {list(shape)}")


def _wrap(model: ClipModel, name: str, quick_gelu: bool) -> Teacher:
    model.requires_grad_(False)
    broken = [key for key, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    logit_scale = float(model.logit_scale.exp())
    if broken or not math.isfinite(logit_scale):
        raise TeacherError(
            f"the weights of {name} hold NaN or infinity ({(broken or ['logit_scale'])[0]}): get the file again"
        )
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:
        raise TeacherError(f"the tokenizer of {name} cannot be loaded or fetched ({error})") from error
    return Teacher(
        model=model,
        tokenizer=tokenizer,
        preprocessing=preprocessing_of(model),
        logit_scale=logit_scale,
        identity={"model": name, "quick_gelu": quick_gelu, "weights": weights_digest(model)},
    )


def preprocessing_of(model: ClipModel) -> Preprocessing:
    """What a model's image encoder expects.

    Raises:
        TeacherError: its input is not square.
    """
    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    if height != width:
        raise TeacherError(f"the model takes images of {height} x {width} pixels; only square inputs are supported")
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Preprocessing(height, mean, std, config["interpolation"], config["resize_mode"])


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of all tensors of a model, independent of the file they came in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(np.ascontiguousarray(values.reshape(-1).view(torch.uint8).numpy()).data)
    return digest.hexdigest()
