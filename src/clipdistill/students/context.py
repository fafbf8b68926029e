"""Prompts whose shared words are a small tensor: what prompt tuning trains (MKT, section 3.3; CoOp, arXiv 2109.01134).

The words around a label, with the marks of begin and end, are its context. Their embeddings are a tensor [K, E] of
their own, so training moves these K vectors alone: never the text encoder's table, whose rows the labels are made of.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import text_global_pool
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipdistill.errors import ParamsError, TeacherError

_SHORT = reprlib.Repr()
_SHORT.maxstring = 60

_CHUNK = 512
"""Prompts that are encoded together; with gradients, each chunk is encoded once more on the way back."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """L prompts as the text encoder reads them, no longer than the longest of them.

    Attributes:
        tokens: int64 [L, T], 0 after the end mark.
        slot: int64 [L, T]: which of the K context vectors stands there; -1: the token's own embedding.
    """

    tokens: Tensor
    slot: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> Prompts:
        """The same on a device."""
        return Prompts(self.tokens.to(device), self.slot.to(device))


def tokenise(tokenizer: object, template: str, names: Sequence[str], longest: int) -> Prompts:
    """Put names into a template.

    Args:
        tokenizer: open_clip's byte-pair tokenizer.
        template: with one {}.
        names: L labels.
        longest: tokens that the text encoder reads at most.

    Raises:
        TeacherError: another tokenizer, whose words cannot be told apart.
        ParamsError: a label without letters, a prompt that is too long, or two labels that read the same; the text
            names them.
    """
    if not isinstance(tokenizer, SimpleTokenizer):
        raise TeacherError("clip.model: prompts can be tuned for text encoders with CLIP's own tokenizer alone")
    before, after = (tokenizer.encode(part) for part in template.split("{}"))
    context = len(before) + len(after) + 2
    rows: list[list[int]] = []
    seen: dict[tuple[int, ...], str] = {}
    for name in names:
        label, shown = tokenizer.encode(name), _SHORT.repr(name)
        if not label:
            raise ParamsError(f"label {shown} has nothing that the text encoder can read")
        if {tokenizer.sot_token_id, tokenizer.eot_token_id} & set(label):
            raise ParamsError(f"label {shown} holds a mark of the text encoder's own; say it in words")
        if context + len(label) > longest:
            raise ParamsError(
                f"label {shown} does not fit: {template!r} with it has {context + len(label)} tokens, and the text "
                f"encoder reads {longest}; shorten it"
            )
        if seen.get(tuple(label)) == name:
            raise ParamsError(f"two labels are prompted {shown}; give each words of its own")
        if tuple(label) in seen:
            raise ParamsError(f"the labels {seen[tuple(label)]!r} and {name!r} are the same to the text encoder")
        seen[tuple(label)] = name
        rows.append(label)
    width = context + max(map(len, rows))
    tokens, slot = torch.zeros(len(rows), width, dtype=torch.int64), torch.full((len(rows), width), -1)
    head, tail = [tokenizer.sot_token_id, *before], [*after, tokenizer.eot_token_id]
    for row, label in enumerate(rows):
        whole = [*head, *label, *tail]
        tokens[row, : len(whole)] = torch.tensor(whole)
        slot[row, : len(head)] = torch.arange(len(head))
        slot[row, len(head) + len(label) : len(whole)] = torch.arange(len(head), context)
    return Prompts(tokens, slot)


def first_context(model: Any, tokenizer: object, template: str) -> Tensor:  # noqa: ANN401 - open_clip ships no types
    """The context as the template's own words have it: float32 [K, E]."""
    prompts = tokenise(tokenizer, template, ["a"], context_length(model))
    words = prompts.tokens[0][prompts.slot[0] >= 0]
    weight: Tensor = _tower(model).token_embedding.weight
    return weight[words.to(weight.device)].detach().float().cpu().clone()


def context_length(model: Any) -> int:  # noqa: ANN401
    """Tokens that the text encoder of a model reads at most."""
    return int(_tower(model).positional_embedding.shape[0])


def encode(model: Any, prompts: Prompts, context: Tensor) -> Tensor:  # noqa: ANN401
    """Embed prompts with a context; with that of the template it is what `model.encode_text` gives.

    Args:
        model: open_clip's CLIP.
        prompts: L of them, on the model's device.
        context: [K, E]; gradients flow into it.

    Returns:
        float [L, D], not scaled to unit norm.
    """
    parts = zip(torch.split(prompts.tokens, _CHUNK), torch.split(prompts.slot, _CHUNK), strict=True)
    if torch.is_grad_enabled() and len(prompts) > _CHUNK:
        return torch.cat([checkpoint(_encode, model, *part, context, use_reentrant=False) for part in parts])
    return torch.cat([_encode(model, *part, context) for part in parts])


def _encode(model: Any, tokens: Tensor, slot: Tensor, context: Tensor) -> Tensor:  # noqa: ANN401
    tower, length = _tower(model), tokens.shape[1]
    # Not by an index: on a processor its gradient is summed by threads in whatever order they come.
    ours = F.embedding(slot.clamp(min=0), context)
    words = torch.where((slot >= 0)[:, :, None], ours, tower.token_embedding(tokens))
    values = words + tower.positional_embedding[:length]
    mask = None if tower.attn_mask is None else tower.attn_mask[:length, :length].to(values.dtype)
    values = tower.ln_final(tower.transformer(values, attn_mask=mask))
    kind = getattr(tower, "text_pool_type", None) or tower.pool_type
    end = getattr(tower, "text_eos_id", None) or getattr(tower, "eos_id", None)
    pooled: Tensor = text_global_pool(values, tokens, pool_type=kind, eos_token_id=end)
    projection = tower.text_projection
    if projection is not None:
        pooled = projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection
    return pooled


def _tower(model: Any) -> Any:  # noqa: ANN401
    """The module that holds the parts of a model's text encoder.

    Raises:
        TeacherError: it is not built as CLIP's is.
    """
    tower = getattr(model, "text", model)
    parts = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    kind = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    if not all(hasattr(tower, part) for part in parts) or getattr(tower, "cls_emb", None) is not None or not kind:
        raise TeacherError("clip.model: its text encoder is not built as CLIP's is, and takes no context of ours")
    if kind not in ("argmax", "eos"):
        raise TeacherError(f"clip.model: its text encoder pools by {kind!r}; only an end mark can be found in a prompt")
    return tower
