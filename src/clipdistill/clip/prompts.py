"""Text embeddings of classes: templates filled, encoded, averaged and renormalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from clipdistill.clip.teacher import Teacher, Tokenizer
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
        ParamsError: a single class, two with the same prompts as the tokenizer reads them, or a prompt that it would
            cut off.
    """
    if len(names) < 2:
        raise ParamsError(
            f"prompts: there is one class, {names[0]!r}, but CLIP's scores are shares among classes, and a lone one "
            "has all of every image; name what it is to be told from as well, such as 'background'"
        )
    prompts = [template.replace("{}", name) for name in names for template in templates]
    tokens = teacher.tokenizer(prompts)
    cure = "shorten the template, or give the class a shorter name in dataset.prompt_names"
    refuse_cut_off(teacher.tokenizer, prompts, tokens, "prompts", cure)
    cure = "give one of them another name, in the pipeline by dataset.prompt_names"
    refuse_equal(names, tokens.reshape(len(names), -1), "the classes prompted", cure)
    with torch.inference_mode():
        batches = [F.normalize(teacher.model.encode_text(part).float(), dim=-1) for part in torch.split(tokens, _BATCH)]
    per_template = torch.cat(batches).reshape(len(names), len(templates), -1)
    return F.normalize(per_template.mean(dim=1), dim=-1)


def refuse_equal(texts: Sequence[str], tokens: torch.Tensor, what: str, cure: str) -> None:
    """Refuse texts of equal tokens: a tokenizer may drop case, white space and the spelling of accents.

    Args:
        texts: M of them.
        tokens: int64 [M, ...], what a tokenizer makes of them.
        what: what the error calls the two texts, before it names them.
        cure: what to do.

    Raises:
        ParamsError: two are equal.
    """
    seen: dict[tuple[int, ...], str] = {}
    for text, row in zip(texts, map(tuple, tokens.tolist()), strict=True):
        if row in seen:
            raise ParamsError(f"{what} {seen[row]!r} and {text!r} are the same to the text encoder; {cure}")
        seen[row] = text


def filled_context(tokenizer: Tokenizer, texts: Sequence[str], tokens: torch.Tensor) -> torch.Tensor:
    """Which texts fill the context of a text encoder: the tokenizer cuts longer ones off without a word.

    Then a word more changes nothing. What the tokenizer pads with does not tell: with some it is the end mark, which
    stands after the cut as well.

    Args:
        tokenizer: of the text encoder.
        texts: M of them.
        tokens: int64 [M, context], what it makes of them.

    Returns:
        bool [M].
    """
    longer = tokenizer([f"{text} x" for text in texts])
    return (tokens == longer).all(dim=1)


def refuse_cut_off(tokenizer: Tokenizer, texts: Sequence[str], tokens: torch.Tensor, where: str, cure: str) -> None:
    """Refuse texts that `filled_context` finds.

    Args:
        tokenizer: as there.
        texts: as there.
        tokens: as there.
        where: parameter or option that the texts are from.
        cure: what to do.

    Raises:
        ParamsError: there is one.
    """
    full = filled_context(tokenizer, texts, tokens)
    if full.any():
        long = texts[int(full.int().argmax())]
        raise ParamsError(
            f"{where}: {long!r} does not fit into the {tokens.shape[1]} tokens that the text encoder reads; {cure}"
        )
