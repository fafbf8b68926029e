"""The teacher: one loader for published, local and self-trained CLIP models, all through open_clip.

What a cached embedding depends on is the teacher's `identity`: architecture, activation, and a digest over all its
weights. It stands in the provenance of every embedding, so that those of two teachers never mix.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import open_clip
import torch
import yaml

from clipdistill import store
from clipdistill.errors import TeacherError
from clipdistill.params import ClipParams

TEACHERS = Path("cache/teachers")
ARCHITECTURES = Path(__file__).parent / "architectures"

Tokenizer = Callable[[list[str]], torch.Tensor]
ClipModel: TypeAlias = Any
"""open_clip's CLIP or CustomTextCLIP, which ship no types."""


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
        identity: JSON values that name architecture and weights.
    """

    model: ClipModel
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    logit_scale: float
    identity: dict[str, Any]


def load(params: ClipParams, teachers: Path = TEACHERS) -> Teacher:
    """Load the teacher that the parameters name.

    Args:
        params: section `clip`.
        teachers: folder of the teachers that the pipeline trained itself.

    Raises:
        TeacherError: unknown model or tag, no such file, a wrong checksum, or weights of another architecture.
    """
    register_architectures()
    if params.model not in open_clip.list_models():
        raise TeacherError(f"clip.model: open_clip knows no {params.model!r}; `clipdistill models` lists what it knows")
    if params.source == "open_clip":
        return _published(params)
    if params.source == "file":
        path, sha256, quick_gelu = Path(params.weights), params.sha256, params.quick_gelu
    else:
        path, sha256, quick_gelu = *_self_trained(params, teachers), False
    model = create(params.model, quick_gelu)
    _load_weights(model, path, sha256)
    return _wrap(model, params.model, quick_gelu)


def register_architectures() -> None:
    """Make the project's own architectures known to open_clip."""
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
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            model = open_clip.create_model(
                params.model, pretrained=params.pretrained, force_quick_gelu=quick_gelu, weights_only=True
            )
    except (RuntimeError, OSError, ValueError, UserWarning) as error:
        raise TeacherError(
            f"{params.model} / {params.pretrained} cannot be loaded ({error}). Without internet, fetch the file "
            "elsewhere and use clip.source = file with clip.weights and clip.sha256"
        ) from error
    return _wrap(model.eval(), params.model, quick_gelu)


def _self_trained(params: ClipParams, teachers: Path) -> tuple[Path, str]:
    card = teachers / f"{params.source}.yaml"
    try:
        content = yaml.safe_load(card.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TeacherError(f"{card} is missing: run `dvc repro stages/scenes/dvc.yaml:pretrain_clip`") from None
    if content["architecture"] != params.model:
        raise TeacherError(
            f"clip.model is {params.model!r}, but {card} holds weights of {content['architecture']!r}: "
            "set clip.model and pretrain_clip.architecture alike"
        )
    return teachers / f"{params.source}.safetensors", content["sha256"]


def _load_weights(model: ClipModel, path: Path, sha256: str) -> None:
    if not path.is_file():
        raise TeacherError(f"weights {path} are missing")
    found = store.file_sha256(path)
    if found != sha256:
        raise TeacherError(f"weights {path} have SHA-256 {found}, expected {sha256}: another file, or a broken copy")
    try:
        open_clip.factory.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise TeacherError(
            f"weights {path} hold more than tensors and were not opened ({str(error).splitlines()[0]}). A TorchScript "
            "archive or a pickled model has to be converted to safetensors first"
        ) from error
    except (
        RuntimeError,
        KeyError,
        ValueError,
        OSError,
        StopIteration,
        AttributeError,
        EOFError,
        AssertionError,
    ) as error:
        raise TeacherError(f"weights {path} do not fit the architecture: {str(error)[:600]}") from error


def _wrap(model: ClipModel, name: str, quick_gelu: bool) -> Teacher:
    model.requires_grad_(False)
    return Teacher(
        model=model,
        tokenizer=open_clip.get_tokenizer(name),
        preprocessing=preprocessing_of(model),
        logit_scale=float(model.logit_scale.exp()),
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
