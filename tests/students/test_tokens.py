"""Embeddings of patches, tower by tower, against what the tower itself computes of a patch."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from clipdistill.clip import teacher
from clipdistill.errors import TeacherError
from clipdistill.students import tokens


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    teacher.register_architectures()
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def tower_of(name: str) -> tokens.Tower:
    return teacher.create(name).visual


def pictures(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side)


def embedded(tower: tokens.Tower, images: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """Embeddings, after a look at what holds for every tower."""
    pooled, cells = tokens.token_embeddings(tower, images)
    assert torch.equal(pooled, tower(images))
    assert cells.shape == (len(images), patches, pooled.shape[1])
    # No patch stands for all, and the mean of what follows compares more than noise.
    assert cells.std(dim=1).mean() > 1e-6
    return pooled, cells


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def small_transformer(**changes: object) -> VisionTransformer:
    settings = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2.0}
    return VisionTransformer(**settings, output_dim=6, **changes).eval()


def small_timm(pool: str, proj: str | None) -> TimmModel:
    return TimmModel("vit_tiny_patch16_224", 6, image_size=224, pool=pool, proj=proj).eval()


# token_embeddings


def test_the_mean_of_a_convolutional_trunk_s_cells_is_the_pooled_embedding() -> None:
    tower = tower_of("scenes-tiny")
    images = pictures(96)
    pooled, cells = embedded(tower, images, 9)
    same(cells.mean(dim=1), pooled)
    features = tower.trunk.forward_features(images)
    for place in range(9):
        same(cells[:, place], tower.head(features[:, :, place // 3, place % 3]))


def test_the_tokens_of_a_transformer_are_open_clip_s_own_projected() -> None:
    tower = tower_of("ViT-B-32")
    images = pictures(224, 1)
    _, cells = embedded(tower, images, 49)
    tower.output_tokens = True
    pooled, own = tower(images)
    assert torch.equal(cells, own @ tower.proj)
    # The release's way: everything after the last block on the class token and the patches alike.
    tower.output_tokens = False
    values = tower.ln_post(tower.transformer(tower._embeds(images))) @ tower.proj
    same(torch.cat([pooled[:, None], cells], dim=1), values)


@pytest.mark.parametrize("last", [False, True])
def test_a_transformer_without_a_class_token_s_pool_has_patches_too(last: bool) -> None:
    tower = small_transformer(pool_type="avg", final_ln_after_pool=last)
    nn.init.normal_(tower.ln_post.weight)
    images = pictures(32)
    pooled, cells = embedded(tower, images, 16)
    values = tower.transformer(tower._embeds(images))[:, 1:]
    same(cells, tower.ln_post(values) @ tower.proj)
    same(pooled, (tower.ln_post(values.mean(dim=1)) if last else tower.ln_post(values).mean(dim=1)) @ tower.proj)


def test_a_cell_of_clip_s_resnet_is_what_its_pooling_gives_where_it_sees_that_cell_alone() -> None:
    tower = tower_of("RN50")
    kept: list[Tensor] = []
    tower.layer4.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    _, cells = embedded(tower, pictures(224, 1), 49)
    values = kept[0].flatten(2).permute(2, 0, 1)
    pool = tower.attnpool
    # A mask of all but itself leaves every place its own value.
    alone, _ = F.multi_head_attention_forward(
        *(values, values, values, values.shape[2], pool.num_heads, None),
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        *(None, None, False, 0.0, pool.c_proj.weight, pool.c_proj.bias),
        training=False,
        need_weights=False,
        attn_mask=~torch.eye(49, dtype=torch.bool),
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    same(cells, alone.transpose(0, 1))


def test_a_cell_of_convnext_is_normalised_by_itself() -> None:
    tower = tower_of("convnext_tiny")
    images = pictures(96)
    pooled, cells = embedded(tower, images, 9)
    norm, (head,) = tower.trunk.head.norm, [part for part in tower.head if isinstance(part, nn.Linear)]
    nn.init.normal_(norm.weight)
    features = tower.trunk.forward_features(images)
    expected = F.layer_norm(features.flatten(2).transpose(1, 2), features.shape[1:2], norm.weight, norm.bias, norm.eps)
    pooled, cells = embedded(tower, images, 9)
    same(cells, expected @ head.weight.T)
    assert (cells.mean(dim=1) - pooled).abs().max() > 1e-3


def test_cells_of_maps_with_their_channels_last() -> None:
    maps = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()
    first = tokens._cells(maps, channels_last=False)
    assert first.shape == (2 * 4 * 5, 3, 1, 1)
    assert torch.equal(first[20 + 7, :, 0, 0], maps[1, :, 1, 2])
    last = tokens._cells(maps.permute(0, 2, 3, 1), channels_last=True)
    assert torch.equal(last[:, 0, 0], first[:, :, 0, 0])


@pytest.mark.parametrize("proj", [None, "linear", "mlp"])
def test_patches_of_a_timm_transformer_that_pools_by_the_mean(proj: str | None) -> None:
    tower = small_timm("avg", proj)
    if proj is None:
        nn.init.normal_(tower.trunk.fc_norm.weight)
    images = pictures(224, 1)
    _, cells = embedded(tower, images, 196)
    features = tower.trunk.forward_features(images)
    # What the tower gives where all patches are that one.
    for place in (0, 17, 195):
        one = features[:, place + 1 : place + 2].expand_as(features)
        same(cells[:, place], tower.head(tower.trunk.forward_head(one)))


@pytest.mark.parametrize("proj", [None, "linear"])
def test_patches_of_a_timm_transformer_that_pools_by_its_class_token(proj: str | None) -> None:
    tower = small_timm("token", proj)
    images = pictures(224, 1)
    _, cells = embedded(tower, images, 196)
    features = tower.trunk.forward_features(images)
    # What the tower gives where that patch stands in the place of the class token.
    for place in (0, 17, 195):
        same(cells[:, place], tower.head(tower.trunk.forward_head(features[:, place + 1 :])))


@pytest.mark.parametrize(
    ("name", "side", "patches"), [("vit_medium_patch16_gap_256", 256, 256), ("EVA02-B-16", 224, 196)]
)
def test_patches_of_open_clip_s_timm_towers_lie_in_the_space_of_the_texts(name: str, side: int, patches: int) -> None:
    pooled, _ = embedded(tower_of(name), pictures(side, 1), patches)
    assert pooled.shape == (1, 512)


@pytest.mark.parametrize(
    "tower",
    [
        pytest.param(lambda: small_transformer(attentional_pool=True, attn_pooler_heads=2), id="open_clip"),
        pytest.param(lambda: small_timm("map", "none"), id="timm"),
    ],
)
def test_towers_that_pool_by_attention_are_refused(tower) -> None:  # noqa: ANN001
    made = tower()
    side = 32 if isinstance(made, VisionTransformer) else 224
    with pytest.raises(TeacherError, match="pools by attention has no patches"):
        tokens.token_embeddings(made, pictures(side, 1))


def test_unknown_towers_are_refused() -> None:
    with pytest.raises(TeacherError, match="patches of a Identity cannot be had"):
        tokens.token_embeddings(nn.Identity(), pictures(8))
    with pytest.raises(TeacherError, match="a Identity cannot be trained layer by layer"):
        tokens.layers(nn.Identity())


# layers

SMALL = ModifiedResNet([1, 1, 1, 1], output_dim=6, heads=2, image_size=32, width=4)


@pytest.mark.parametrize(
    ("tower", "count"),
    [
        pytest.param(lambda: tower_of("scenes-tiny"), 6, id="scenes-tiny"),
        pytest.param(lambda: tower_of("convnext_tiny"), 7, id="convnext"),
        pytest.param(lambda: SMALL, 6, id="resnet"),
        pytest.param(small_transformer, 4, id="transformer"),
        pytest.param(lambda: small_transformer(attentional_pool=True, attn_pooler_heads=2), 4, id="attention pool"),
        pytest.param(lambda: small_timm("avg", "linear"), 14, id="timm"),
        pytest.param(lambda: small_timm("token", None), 14, id="timm, projection in the trunk"),
    ],
)
def test_layers_hold_each_parameter_once_from_the_pixels_up(tower, count: int) -> None:  # noqa: ANN001
    made = tower()
    layers = tokens.layers(made)
    held = [id(parameter) for layer in layers for parameter in layer]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in made.parameters()}
    assert len(layers) == count
    assert all(layers)
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    assert any(
        "conv1" in name or "stem" in name or "patch_embed" in name for name in map(names.get, map(id, layers[0]))
    )
    last = [names[id(parameter)] for parameter in layers[-1]]
    assert any(word in name for name in last for word in ("proj", "head", "mlp"))


def test_the_last_three_layers_of_vit_b_16_are_what_open_clip_unlocks() -> None:
    model = teacher.create("ViT-B-16")
    upper = [parameter for layer in tokens.layers(model.visual)[-3:] for parameter in layer]
    assert sum(parameter.numel() for parameter in upper) == 14_570_496
    model.lock_image_tower(unlocked_groups=3)
    trained = {id(parameter) for parameter in model.visual.parameters() if parameter.requires_grad}
    assert trained == set(map(id, upper))


# takes_any_side, as_map


@pytest.mark.parametrize("name", ["scenes-tiny", "ViT-S-32", "vit_relpos_medium_patch16_cls_224", "ViTamin-S"])
def test_towers_that_take_any_side_do_and_the_others_are_known(name: str) -> None:
    tower = tower_of(name)
    side = tower.image_size[0] + 64
    if tokens.takes_any_side(tower):
        embedded(tower, pictures(side, 1), (side // 32) ** 2)
    else:
        with pytest.raises((AssertionError, RuntimeError)):
            tower(pictures(side, 1))


def test_maps_have_their_patches_row_by_row() -> None:
    patches = torch.randn(2, 9, 4)
    maps = tokens.as_map(patches)
    assert maps.shape == (2, 4, 3, 3)
    assert torch.equal(maps[1, :, 2, 1], patches[1, 7])
