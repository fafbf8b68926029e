"""Embeddings of an image and of its patches from any image tower of open_clip, in the space of the texts."""

from __future__ import annotations

import math
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from clipdistill.errors import ParamsError, TeacherError

Tower = nn.Module
"""open_clip's image tower: `model.visual`."""

_POOLED = "clip.model: an image tower that pools by attention has no patches in the space of the texts; take another"


def token_embeddings(tower: Tower, images: Tensor) -> tuple[Tensor, Tensor]:
    """Embed images and their patches, none of them scaled to unit norm.

    A vision transformer gives the class token and the patch tokens, both through the last normalisation and the one
    projection (as MKT's released code does). A convolutional trunk gives the cells of its map, each pooled and
    projected as if it were the whole map. CLIP's own ResNets give, for a cell, the value path of their attention
    pooling (MaskCLIP, arXiv 2112.01071, section 3.2).

    Args:
        tower: on a device.
        images: float [B, 3, S, S], normalised.

    Returns:
        [B, D], equal to `tower(images)`, and [B, M, D], the patches row by row.

    Raises:
        TeacherError: the tower has no patches, or images are not of the side that it takes.
    """
    if isinstance(tower, VisionTransformer):
        return _transformer(tower, images)
    if isinstance(tower, TimmModel):
        return _timm(tower, images)
    if isinstance(tower, ModifiedResNet):
        return _resnet(tower, images)
    raise TeacherError(f"clip.model: patches of a {type(tower).__name__} cannot be had; take a ViT or a ResNet")


def dense_embeddings(tower: Tower, images: Tensor) -> Tensor:
    """Embed the cells of a tower's map, each by itself: float [B, M, D], row by row, not of unit norm.

    As the patches of `token_embeddings`, but for a vision transformer: in its last block a token attends to itself
    alone (a mask with 0 on the diagonal and -inf elsewhere), so that what a cell shows is not mixed with the rest once
    more. Without an adapter that is the value path of MaskCLIP (arXiv 2112.01071, section 3.2); and unlike code that
    reads the value projection itself, the mask keeps whatever adapter the attention has in the path.

    Args:
        tower: on a device.
        images: float [B, 3, S, S], normalised.

    Raises:
        TeacherError: as `token_embeddings`.
    """
    if not isinstance(tower, VisionTransformer):
        return token_embeddings(tower, images)[1]
    if tower.attn_pool is not None:
        raise TeacherError(_POOLED)
    values = tower._embeds(images)
    *blocks, last = tower.transformer.resblocks
    if not tower.transformer.batch_first:
        values = values.transpose(0, 1)
    for block in blocks:
        values = block(values)
    length = values.shape[1 if tower.transformer.batch_first else 0]
    alone = torch.full((length, length), -torch.inf, device=values.device, dtype=values.dtype).fill_diagonal_(0)
    values = last(values, attn_mask=alone)
    if not tower.transformer.batch_first:
        values = values.transpose(0, 1)
    cells: Tensor = tower.ln_post(values[:, 1:])
    return cells if tower.proj is None else cells @ tower.proj


def cells_a_side(tower: Tower, size: int) -> int:
    """Cells a side of a tower's map of images of `size` pixels.

    Raises:
        TeacherError: as `token_embeddings`, or the map is not square.
    """
    with torch.no_grad():
        cells = dense_embeddings(tower, torch.zeros(1, 3, size, size)).shape[1]
    side = math.isqrt(cells)
    if side * side != cells:
        raise TeacherError(f"clip.model: its map of {size} pixels has {cells} cells, which make no square")
    return side


def takes_any_side(tower: Tower) -> bool:
    """Whether the tower takes images of another side than its own: a convolutional trunk, which knows no places."""
    return isinstance(tower, TimmModel) and not hasattr(tower.trunk, "patch_embed")


def require_side(tower: Tower, model: str, own: int, wanted: int, key: str, cure: str) -> None:
    """Refuse images of a side that a tower does not take.

    Args:
        tower: image tower.
        model: its name.
        own: side that it was made for, pixels.
        wanted: side of the images, pixels.
        key: parameter that says so.
        cure: what to do.

    Raises:
        ParamsError: the tower has embeddings of places, and the sides differ.
    """
    if wanted != own and not takes_any_side(tower):
        raise ParamsError(f"{key}: {model} takes images of {own} pixels alone, found {wanted}; {cure}")


def _transformer(tower: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    if tower.attn_pool is not None:
        raise TeacherError(_POOLED)
    values = tower.transformer(tower._embeds(images))
    pooled, tokens = tower._pool(values)
    if tower.final_ln_after_pool:
        tokens = tower.ln_post(tokens)
    if tower.proj is None:
        return pooled, tokens
    return pooled @ tower.proj, tokens @ tower.proj


def _timm(tower: TimmModel, images: Tensor) -> tuple[Tensor, Tensor]:
    trunk: Any = tower.trunk
    features = trunk.forward_features(images)
    pooled = tower.head(trunk.forward_head(features))
    if getattr(trunk, "attn_pool", None) is not None:
        raise TeacherError(_POOLED)
    if features.ndim == 4:
        cells = _cells(features, channels_last=getattr(trunk, "output_fmt", "NCHW") != "NCHW")
        return pooled, tower.head(trunk.forward_head(cells)).reshape(len(images), -1, pooled.shape[1])
    patches = features[:, getattr(trunk, "num_prefix_tokens", 1) :]
    # The projection is the trunk's own head in some models, and open_clip's in others.
    return pooled, tower.head(trunk.head(trunk.fc_norm(patches)))


def _cells(features: Tensor, channels_last: bool) -> Tensor:
    """The cells of maps [B, F, h, w] or [B, h, w, F], row by row, each as a map of its own."""
    if channels_last:
        return features.reshape(-1, 1, 1, features.shape[3])
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1], 1, 1)


def _resnet(tower: ModifiedResNet, images: Tensor) -> tuple[Tensor, Tensor]:
    features = tower.stem(images)
    for stage in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        features = stage(features)
    pool = tower.attnpool
    cells = features.flatten(2).transpose(1, 2)
    return pool(features), pool.c_proj(pool.v_proj(cells))


def layers(tower: Tower) -> list[list[nn.Parameter]]:
    """Trained parameters of a tower in layers, from the pixels up: the first is the stem, the last the projection.

    In a vision transformer a layer is a block, and the last one holds the final normalisation and the projection, as
    open_clip's `lock` counts them.

    Raises:
        TeacherError: a tower of an unknown kind.
    """
    if isinstance(tower, VisionTransformer):
        blocks = [list(block.parameters()) for block in tower.transformer.resblocks]
        last = [*tower.ln_post.parameters(), *([] if tower.proj is None else [tower.proj])]
        return _with_stem(tower, blocks, last)
    if isinstance(tower, ModifiedResNet):
        stages = [list(getattr(tower, f"layer{number}").parameters()) for number in (1, 2, 3, 4)]
        return _with_stem(tower, stages, list(tower.attnpool.parameters()))
    if isinstance(tower, TimmModel):
        return _timm_layers(tower)
    raise TeacherError(f"clip.model: a {type(tower).__name__} cannot be trained layer by layer; take a ViT or a ResNet")


def _with_stem(tower: Tower, blocks: list[list[nn.Parameter]], last: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    known = {id(parameter) for block in (*blocks, last) for parameter in block}
    return [[parameter for parameter in tower.parameters() if id(parameter) not in known], *blocks, last]


def _timm_layers(tower: TimmModel) -> list[list[nn.Parameter]]:
    from timm.models import group_parameters  # noqa: PLC0415 - timm is heavy

    trunk: Any = tower.trunk
    groups = group_parameters(trunk, trunk.group_matcher(coarse=True))
    found = [[trunk.get_parameter(name) for name in groups[key]] for key in sorted(groups)]
    # Where the trunk projects, open_clip's head is empty: no layer, which would take the place of the topmost.
    return [layer for layer in (*found, list(tower.head.parameters())) if layer]


def as_map(patches: Tensor) -> Tensor:
    """Patches [B, M, D] of a square map as [B, D, h, h], M = h h."""
    side = int(torch.tensor(patches.shape[1]).sqrt().round())
    return patches.transpose(1, 2).reshape(len(patches), -1, side, side)
