"""What the folder of an adapter holds, and that it is whole: checked before peft sees any of it.

Sums tell of damage, not of a hand that wrote new ones: what is read here is of its type and range as well, and no
larger than what the tensors themselves have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
import torch
import yaml
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor

from clipdistill import store, yaml_text
from clipdistill.errors import ArtifactError, printable
from clipdistill.params import LoraRank, Section

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "adapter.yaml"
CURE = "run `dvc repro` to make it anew, or `dvc checkout` to bring it back"

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


class _Part(Section):
    """Keys beside those that are used may stand there: peft has dozens."""

    model_config = ConfigDict(extra="ignore")


class Sums(_Part):
    """SHA-256 of the files, by their names."""

    config: str = Field(alias=CONFIG)
    weights: str = Field(alias=WEIGHTS)


class Card(_Part):
    """What is used of `adapter.yaml`."""

    sha256: Sums
    weights: str = Field(description="digest of the weights that the adapter was trained for")
    change: Annotated[float, Field(ge=0)] = Field(description="length of what it adds to them, as one vector")


class Config(_Part):
    """What is used of `adapter_config.json`: a file from elsewhere shall switch on nothing else."""

    peft_type: Literal["LORA"]
    r: LoraRank
    lora_alpha: Annotated[float, Field(gt=0)]
    target_modules: Annotated[list[str], Field(min_length=1)] = Field(
        description="names, or ends of names, of modules; as one text peft would take it for a pattern"
    )


def read_card(folder: Path) -> Card:
    """Read the card of an adapter.

    Raises:
        ArtifactError: missing, unreadable, or not of its form.
    """
    path = folder / CARD
    try:
        return Card.model_validate(yaml_text.read(path))
    except FileNotFoundError:
        raise ArtifactError(
            f"clip.adapter: {path} is missing; name a folder that train@ttd has left, or run `dvc repro` to make it"
        ) from None
    except ValidationError as error:
        reason = _problems(error)
    except (OSError, yaml.YAMLError) as error:
        reason = str(error)
    raise ArtifactError(f"clip.adapter: {path} is no card of an adapter ({reason}): {CURE}")


def read(folder: Path, card: Card) -> tuple[dict[str, Tensor], Config]:
    """Read tensors and configuration of an adapter.

    Args:
        folder: where they lie.
        card: its card.

    Raises:
        ArtifactError: a file is missing, altered, unreadable or not of its form, or the two do not belong together.
    """
    _require_sum(folder, CONFIG, card.sha256.config)
    _require_sum(folder, WEIGHTS, card.sha256.weights)
    config = _config(folder / CONFIG)
    state = _tensors(folder / WEIGHTS)
    for name, value in state.items():
        # Before peft makes matrices of that rank for every module.
        found = value.shape[:1] if ".lora_A." in name else value.shape[1:2]
        if list(found) != [config.r]:
            raise ArtifactError(
                f"{folder / CONFIG} says r = {config.r}, but {printable(name)} in {folder / WEIGHTS} is "
                f"{list(value.shape)}: {CURE}"
            )
    return state, config


def _require_sum(folder: Path, name: str, sha256: str) -> None:
    path = folder / name
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: {CURE}")
    if (found := store.file_sha256(path)) != sha256:
        raise ArtifactError(f"{path} was altered: SHA-256 {found} is not that of {folder / CARD}: {CURE}")


def _config(path: Path) -> Config:
    try:
        return Config.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        reason = _problems(error)
    except RecursionError:
        reason = "nested too deeply"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ArtifactError(f"{path} is no configuration of an adapter ({reason}): {CURE}")


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(path)
        if strange := [name for name, value in state.items() if value.dtype not in _FLOATS]:
            raise ValueError(f"{printable(strange[0])} is of {state[strange[0]].dtype}")
        if broken := [name for name, value in state.items() if not torch.isfinite(value).all()]:
            raise ValueError(f"{printable(broken[0])} holds NaN or infinity")
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{path} holds no tensors of an adapter that can be read ({error}): {CURE}") from None
    return state


def _problems(error: ValidationError) -> str:
    """What is wrong, by key; values are not repeated, they may be of any length."""
    found: list[Any] = list(error.errors(include_url=False, include_input=False))
    return printable("; ".join(f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in found))
