"""Text embeddings of classes: templates filled, encoded, averaged and renormalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from clipdistill.clip.teacher import Teacher
from clipdistill.errors import ParamsError

_BATCH = 256


def embed_prompts(teacher: Teacher, names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Embed class names through prompt templates.

    The embedding of a class is the mean of the unit-norm embeddings of its T prompts, scaled to unit norm
    (prompt ensembling of CLIP, Radford et al. 2021, section 3.1.4).

    Args:
        teacher: CLIP.
        names: C names as prompts say them.
        templates: T templates, each with one {}.

    Returns:
        float32 [C, D], rows of unit norm.

    Raises:
        ParamsError: two classes with the same prompts, or a prompt that the tokenizer would cut off.
    """
    prompts = [template.replace("{}", name) for name in names for template in templates]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        raise ParamsError(f"dataset.prompt_names: several classes are prompted {', '.join(map(repr, twice))}")
    _refuse_truncated(teacher, prompts)
    with torch.inference_mode():
        batches = [
            F.normalize(teacher.model.encode_text(teacher.tokenizer(prompts[start : start + _BATCH])).float(), dim=-1)
            for start in range(0, len(prompts), _BATCH)
        ]
    per_template = torch.cat(batches).reshape(len(names), len(templates), -1)
    return F.normalize(per_template.mean(dim=1), dim=-1)


def _refuse_truncated(teacher: Teacher, prompts: Sequence[str]) -> None:
    """Refuse a prompt that fills the context: the tokenizer cuts longer ones off without a word."""
    context = teacher.tokenizer([""])
    padding, length = int(context[0, -1]), context.shape[1]
    for prompt in prompts:
        if int(teacher.tokenizer([prompt])[0, -1]) != padding:
            raise ParamsError(
                f"prompts: {prompt!r} does not fit into the {length} tokens that the text encoder reads; shorten the "
                "template, or give the class a shorter name in dataset.prompt_names"
            )
