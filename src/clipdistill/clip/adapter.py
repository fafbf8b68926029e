"""Adapters of a teacher: low-rank changes of its two towers, as peft keeps them, and how a stage takes them.

An adapter is a folder as peft writes it (`adapter_config.json`, `adapter_model.safetensors`), with a card beside it,
`adapter.yaml`: the SHA-256 of both, and for which weights it was trained. To train, it lies in the network beside the
weights; to be used, it is added to them once, so that nothing that looks at images is slower with one.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import safetensors.torch
import torch
import yaml
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from clipdistill import store
from clipdistill.clip import adapter_folder
from clipdistill.clip.adapter_folder import CARD, CONFIG, CURE, WEIGHTS
from clipdistill.errors import TeacherError, printable

if TYPE_CHECKING:
    from peft import PeftModel

# Of timm's transformers, whose projections may stand together or apart.
_BLOCK_PROJECTIONS = tuple(f".attn.{name}" for name in ("qkv", "q_proj", "k_proj", "v_proj", "proj"))

Adapted: TypeAlias = "PeftModel"

_CHANGED = "lora_"
"""What stands in the name of every tensor of an adapter and of no other."""


def targets(model: nn.Module) -> list[str]:
    """Full names of the modules that an adapter changes, sorted.

    Of both towers the attention of every block, with its output projection. A convolutional image tower has none: of it
    the convolutions of the last stage, and the linear projection, if it has one. Attention that pools is left out: it
    reads its weights past any adapter.

    Args:
        model: open_clip's.

    Raises:
        TeacherError: nothing that could be adapted in one of the towers.
    """
    tower: Any = model.visual
    seen = [f"visual.{name}" for name in _of_image_tower(tower)]
    read = [name for name, module in model.named_modules() if _is_text_attention(name, module)]
    if not seen or not read:
        kind = "image" if not seen else "text"
        raise TeacherError(f"clip.model: its {kind} tower has no attention and no convolution to adapt; take another")
    return sorted(seen + read)


def _of_image_tower(tower: Any) -> list[str]:  # noqa: ANN401 - open_clip ships no types
    if isinstance(tower, TimmModel):
        blocks = [name for name, module in tower.named_modules() if name.endswith(_BLOCK_PROJECTIONS)]
        return blocks or [*_convolutions("trunk.layer4", tower.trunk, "layer4"), *_projection(tower)]
    if isinstance(tower, ModifiedResNet):
        return _convolutions("layer4", tower, "layer4")
    attention = (name for name, module in tower.named_modules() if isinstance(module, nn.MultiheadAttention))
    return [name for name in attention if not name.startswith("attn_pool")]


def _convolutions(prefix: str, network: nn.Module, stage: str) -> list[str]:
    found = getattr(network, stage, nn.Module()).named_modules()
    return [f"{prefix}.{name}" for name, module in found if isinstance(module, nn.Conv2d)]


def _projection(tower: TimmModel) -> list[str]:
    return [f"head.{name}" for name, module in tower.head.named_modules() if isinstance(module, nn.Linear)]


def _is_text_attention(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) and not name.startswith("visual.")


def add(model: nn.Module, rank: int, alpha: float, seed: int) -> Adapted:
    """Put an adapter that changes nothing yet beside a model's weights, which no longer learn.

    Args:
        model: open_clip's; changed in place.
        rank: r.
        alpha: the change is alpha / r times the product of the two matrices.
        seed: of the first one of each; the second is 0.

    Returns:
        peft's wrapper, whose `base_model.model` is the model.

    Raises:
        TeacherError: as `targets`, or peft is not installed.
    """
    peft = _peft()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: Adapted = peft.get_peft_model(model, config)
    for module in adapted.modules():
        if isinstance(module, peft.tuners.lora.layer.MultiheadAttention):
            _keep_weights(module)
    return adapted


def _keep_weights(attention: Any) -> None:  # noqa: ANN401 - peft's
    """Give an attention its own weights back before each pass, to the bit.

    peft adds the change to them and subtracts it afterwards: what rounding leaves would add up over a training, and a
    resumed run would begin without it.
    """
    base = attention.get_base_layer()
    layers = ((base, "in_proj_weight"), (base.out_proj.get_base_layer(), "weight"))
    kept = [(layer, name, getattr(layer, name).detach()) for layer, name in layers]

    def restore(*_: object) -> None:
        for layer, name, weight in kept:
            # The model may have moved since.
            place = getattr(layer, name).device
            setattr(layer, name, nn.Parameter(weight.to(place), requires_grad=False))

    attention.register_forward_pre_hook(restore)


def learning(adapted: Adapted) -> dict[str, nn.Parameter]:
    """The adapter's tensors by name: all that learns."""
    return {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}


def save(folder: Path, adapted: Adapted, weights: str, provenance: dict[str, Any]) -> str:
    """Write an adapter: equal tensors and provenance give equal bytes. The card is written last.

    Args:
        folder: made where it is missing.
        adapted: from `add`, on the CPU; its changes are added to its model's weights for good.
        weights: digest of the weights that it is for (`teacher.weights_digest`).
        provenance: how it was trained, JSON values.

    Returns:
        SHA-256 of the tensors.

    Raises:
        ArtifactError: the disk refuses.
    """
    state = {
        name: value.detach().cpu().contiguous() for name, value in _peft().get_peft_model_state_dict(adapted).items()
    }
    store.write_atomically(folder / WEIGHTS, safetensors.torch.save(state))
    # peft's own writer keeps sets in no order.
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in _config(adapted).items()}
    store.write_atomically(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True, default=str) + "\n").encode())
    card: dict[str, Any] = {
        "sha256": {name: store.file_sha256(folder / name) for name in (CONFIG, WEIGHTS)},
        "weights": weights,
        "parameters": sum(value.numel() for value in state.values()),
        "change": _add_to_weights(adapted)[1],
        "provenance": provenance,
    }
    store.write_atomically(folder / CARD, yaml.safe_dump(card, sort_keys=False).encode())
    return str(card["sha256"][WEIGHTS])


def _add_to_weights(adapted: Adapted) -> tuple[nn.Module, float]:
    """The model with its weights changed for good, and the length of the change, as one vector."""
    prefix = "base_model.model."
    before = {
        name.removeprefix(prefix).replace(".base_layer", ""): value.detach().clone()
        for name, value in adapted.state_dict().items()
        if _CHANGED not in name
    }
    model: nn.Module = adapted.merge_and_unload()
    after = model.state_dict()
    squares = [(after[name].double() - value.double()).square().sum() for name, value in before.items()]
    return model, float(torch.stack(squares).sum().sqrt())


def _config(adapted: Adapted) -> dict[str, Any]:
    config: dict[str, Any] = adapted.peft_config["default"].to_dict()
    return config | {"inference_mode": True, "base_model_name_or_path": None}


def merge(model: nn.Module, folder: Path, weights: str) -> str:
    """Add an adapter to a model's weights, in place.

    Args:
        model: open_clip's.
        folder: of the adapter.
        weights: digest of the model's weights; the adapter must have been trained for them.

    Returns:
        SHA-256 of the adapter's tensors.

    Raises:
        TeacherError: peft is not installed, or the adapter is for other weights or another architecture.
        ArtifactError: it is missing, damaged or altered.
    """
    card = adapter_folder.read_card(folder)
    if card.weights != weights:
        raise TeacherError(
            f"clip.adapter: {folder} was trained for weights {printable(card.weights[:12])}, but the teacher has "
            f"{weights[:12]}: name the teacher that it was trained on in `clip`, or train it anew"
        )
    state, config = adapter_folder.read(folder, card)
    peft = _peft()
    try:
        wanted = peft.LoraConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules=config.target_modules)
        adapted = peft.get_peft_model(model, wanted)
        _load(peft, adapted, state)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        reason = printable(next(iter(str(error).splitlines()), ""))
        raise TeacherError(f"clip.adapter: {folder} does not fit the teacher ({reason}); {CURE}") from None
    _, change = _add_to_weights(adapted)
    if not math.isclose(change, card.change, rel_tol=1e-3):
        raise TeacherError(
            f"clip.adapter: {folder} changes the weights by {change:.4g} here, and where it was trained by "
            f"{card.change:.4g}: either lora_alpha in {CONFIG} or change in {CARD} was edited ({CURE}), or another "
            f"version of peft than that which made it computes otherwise (this is {peft.__version__}: install that of "
            "constraints.txt)"
        )
    return card.sha256.weights


def _load(peft: Any, adapted: Adapted, state: dict[str, Tensor]) -> None:  # noqa: ANN401 - a module
    wanted = {name: value.shape for name, value in peft.get_peft_model_state_dict(adapted).items()}
    found = {name: value.shape for name, value in state.items()}
    if differing := sorted(wanted.items() ^ found.items()):
        raise ValueError(f"first difference: {differing[0][0]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.set_peft_model_state_dict(adapted, state)


def _peft() -> Any:  # noqa: ANN401 - a module
    try:
        import peft  # noqa: PLC0415 - heavy, and needed with adapters alone
    except ImportError:
        raise TeacherError("adapters need peft: pip install 'clipdistill[ttd]'") from None
    return peft
