"""What every part of TTD asks first: which CLIP, at which size, and how words are scored."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clipdistill import distributed
from clipdistill.clip import teacher
from clipdistill.clip.tagging import Maps
from clipdistill.clip.teacher import Teacher
from clipdistill.methods import ttd
from clipdistill.params import NO_ADAPTER, Params, TtdParams
from clipdistill.stage import Paths
from clipdistill.students import tokens
from clipdistill.training.loop import Machine

Way = Literal["image", "text"] | ttd.Rule
"""What the words of a caption are scored by: the whole image, the caption, or pixels under a rule."""


def plain_teacher(params: Params) -> Teacher:
    """The teacher without an adapter: what TTD starts from, and is compared with."""
    return teacher.load(params.clip.model_copy(update={"adapter": NO_ADAPTER}))


def adapted_teacher(params: Params) -> Teacher:
    """The teacher with the adapter that TTD has trained for this data set."""
    return teacher.load(params.clip.model_copy(update={"adapter": str(Paths(params.dataset.name).ttd_adapter)}))


def image_size(params: TtdParams, model: Teacher) -> int:
    """Side of the images that CLIP sees in TTD, pixels.

    Raises:
        ParamsError: a tower with embeddings of places takes no other side than its own.
    """
    own = model.preprocessing.size
    size = own if params.image_size == "clip" else params.image_size
    tokens.require_side(model.model.visual, model.identity["model"], own, size, "ttd.image_size", "set it to clip")
    return size


def word_scale(params: TtdParams, model: Teacher) -> float:
    """Multiplier of the cosines in a softmax over words."""
    return model.logit_scale if params.scale == "model" else params.scale


def score_words(way: Way, maps: Maps, valid: Tensor, scale: float, whole: Tensor | None = None) -> Tensor:
    """Score the words of captions in one of the ways that TTD compares.

    Args:
        way: how.
        maps: of B captions with K words.
        valid: bool [B, K], as `Texts` has it; on the maps' device.
        scale: of the cosines in a softmax over words.
        whole: [B, D], embeddings of the whole images, which `image` needs.

    Returns:
        float32 [B, K], in [0, 1]; 0 for padding.

    Raises:
        ValueError: `image` without embeddings.
    """
    if way == "text":
        return ttd.text_scores(maps.sentence, maps.words, valid, scale)
    if way != "image":
        return ttd.tag_scores(maps.tags, valid, way, scale)
    if whole is None:
        raise ValueError("words are scored by the whole image, whose embedding is not given")
    return ttd.image_scores(whole, maps.words, valid, scale)


def pixel_rule(params: TtdParams) -> ttd.Rule:
    """How words are scored by pixels: as training chooses them, where it does so by pixels."""
    return "cosine_minmax" if params.score == "cosine_minmax" else "softmax_max"


def machine(params: TtdParams, compute: distributed.Compute) -> Machine:
    """Where and in which numbers TTD computes; sets the threads."""
    device = compute.torch_device()
    torch.set_num_threads(compute.thread_count())
    dtype = distributed.resolve_precision(params.recipe.precision, device)
    return Machine(device, dtype, compute.worker_count(), compute.batch_size)
