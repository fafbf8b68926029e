"""TTD's scores, targets, losses, mask refinement, windows and shares by hand, by slow loops and by their properties."""

import doctest
import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from clipdistill.methods import ttd

quick = settings(deadline=None, max_examples=40)
COSINE = st.floats(-1, 1, width=32)
RULES = ("softmax_max", "cosine_minmax")
LOSSES = ("bce", "l1")


def tensors(shape: Sequence[int], elements: st.SearchStrategy[float] = COSINE) -> st.SearchStrategy[Tensor]:
    return arrays.arrays(np.float32, tuple(shape), elements=elements).map(torch.from_numpy)


@st.composite
def batches(draw: st.DrawFn, tagged: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Tag maps [B, K, h, w], caption maps [B, h, w] and valid [B, K]; with `tagged` no caption is without a tag."""
    images, tags, height, width = (draw(st.integers(1, high)) for high in (3, 4, 3, 3))
    counts = draw(st.lists(st.integers(int(tagged), tags), min_size=images, max_size=images))
    valid = torch.arange(tags) < torch.tensor(counts)[:, None]
    return draw(tensors((images, tags, height, width))), draw(tensors((images, height, width))), valid


def padded(table: Tensor, value: float, count: int = 2) -> Tensor:
    """The table [B, K, ...] with more tags."""
    return torch.cat([table, table.new_full((len(table), count, *table.shape[2:]), value)], dim=1)


def everywhere(table: Tensor) -> Tensor:
    return torch.ones(table.shape[:2], dtype=torch.bool)


def test_docstring_examples() -> None:
    result = doctest.testmod(ttd)
    assert result.attempted > 0
    assert result.failed == 0


# Scores and choice


def test_softmax_max_by_hand() -> None:
    maps = torch.tensor([[[[0.30, 0.28]], [[0.29, 0.30]], [[0.90, 0.90]]]])
    scores = ttd.tag_scores(maps, torch.tensor([[True, True, False]]), scale=100.0)
    expected = torch.tensor([[1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2)), 0]])
    torch.testing.assert_close(scores, expected)


def test_cosine_minmax_by_hand() -> None:
    maps = torch.tensor([[[[0.1, 0.2]], [[0.4, 0.0]], [[0.1, 0.3]], [[-1.0, 1.0]]]])
    scores = ttd.tag_scores(maps, torch.tensor([[True, True, True, False]]), "cosine_minmax")
    torch.testing.assert_close(scores, torch.tensor([[0, 1, 0.5, 0]]))


def test_whole_scores_by_hand() -> None:
    tags = torch.tensor([[[3.0, 0.0], [3.0, 4.0], [0.0, 1.0]]])
    valid = torch.tensor([[True, True, False]])
    expected = torch.tensor([[1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2)), 0]])
    for scores in (ttd.image_scores, ttd.text_scores):
        torch.testing.assert_close(scores(torch.tensor([[7.0, 0.0]]), tags, valid, scale=5.0), expected)


def test_cosines_are_multiplied_by_a_hundred_unless_told_otherwise() -> None:
    """Tags so near to each other that another scale shows: 0.01 apart, and 0.02 apart times 1 / |(1, 0.9)|."""
    valid = torch.tensor([[True, True]])
    maps = torch.tensor([[[[0.25]], [[0.24]]]], dtype=torch.float64)
    first = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(ttd.tag_scores(maps, valid), torch.tensor([[first, 1 - first]]).double())
    tags = torch.tensor([[[0.8, 0.6], [0.6, 0.8]]], dtype=torch.float64)
    first = 1 / (1 + math.exp(-2 / math.sqrt(1.81)))
    for scores in (ttd.image_scores, ttd.text_scores):
        whole = torch.tensor([[1.0, 0.9]], dtype=torch.float64)
        torch.testing.assert_close(scores(whole, tags, valid), torch.tensor([[first, 1 - first]]).double())


def test_pixels_find_the_tag_that_the_whole_image_hides() -> None:
    cells = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 1]), 3).float()  # [M, D]
    tags = torch.eye(3)[None]
    maps = (tags[0] @ cells.T).reshape(1, 3, 2, 2)
    valid = everywhere(tags)
    torch.testing.assert_close(ttd.tag_scores(maps, valid), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(ttd.image_scores(cells.mean(dim=0)[None], tags, valid), torch.tensor([[1.0, 0.0, 0.0]]))


@quick
@given(batches(), st.sampled_from(RULES), st.sampled_from([-1.0, 1.0, math.nan, math.inf]))
def test_padding_changes_no_score(batch: tuple[Tensor, Tensor, Tensor], rule: ttd.Rule, value: float) -> None:
    maps, caption, valid = batch
    scores = ttd.tag_scores(maps, valid, rule)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert not scores[~valid].any()
    more = ttd.tag_scores(padded(maps, value), padded(valid, 0), rule)
    torch.testing.assert_close(more, padded(scores, 0.0))
    embeddings, whole = maps.flatten(2), caption.flatten(1)
    scores = ttd.image_scores(whole, embeddings, valid)
    torch.testing.assert_close(scores.sum(dim=1), valid.any(dim=1).float())
    assert not scores[~valid].any()
    more = ttd.image_scores(whole, padded(embeddings, value), padded(valid, 0))
    torch.testing.assert_close(more, padded(scores, 0.0))


@quick
@given(batches(), st.sampled_from(RULES), st.floats(0, 1), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_the_tags(batch, rule, threshold, random) -> None:  # noqa: ANN001
    maps, _, valid = batch
    order = list(range(maps.shape[1]))
    random.shuffle(order)
    scores = ttd.tag_scores(maps, valid, rule)
    shuffled = ttd.tag_scores(maps[:, order], valid[:, order], rule)
    torch.testing.assert_close(shuffled, scores[:, order])
    selected = ttd.select_tags(scores, valid, threshold)
    assert torch.equal(ttd.select_tags(scores[:, order], valid[:, order], threshold), selected[:, order])
    # Scores that rounding may push over the threshold are left out.
    clear = (scores - threshold).abs() > 1e-5
    again = ttd.select_tags(shuffled, valid[:, order], threshold)
    assert torch.equal((again == selected[:, order]) | ~clear[:, order], everywhere(maps))


@quick
@given(tensors((2, 1, 2, 3)), st.sampled_from(RULES))
def test_the_only_word_scores_1_and_is_the_union(maps: Tensor, rule: ttd.Rule) -> None:
    valid = everywhere(maps)
    scores = ttd.tag_scores(maps, valid, rule)
    assert torch.equal(scores, torch.ones(2, 1))
    targets = ttd.tag_targets(maps, ttd.select_tags(scores, valid, 1.0))
    assert torch.equal(ttd.union_target(targets), targets[:, 0])
    flat = maps.flatten(2)
    assert torch.equal(ttd.text_scores(flat[:, 0], flat, valid), torch.ones(2, 1))


def test_equal_tags_all_score_1_under_cosine_minmax() -> None:
    maps = torch.full((1, 3, 2, 2), 0.25)
    assert torch.equal(ttd.tag_scores(maps, everywhere(maps), "cosine_minmax"), torch.ones(1, 3))
    torch.testing.assert_close(ttd.tag_scores(maps, everywhere(maps)), torch.full((1, 3), 1 / 3))


def test_the_threshold_itself_is_kept_and_padding_never() -> None:
    scores, valid = torch.tensor([[0.5, 0.49, 0.0]]), torch.tensor([[True, True, False]])
    assert ttd.select_tags(scores, valid, 0.5).tolist() == [[True, False, False]]
    assert ttd.select_tags(scores, valid, 0.0).tolist() == [[True, True, False]]
    assert ttd.select_tags(scores, valid, 1.0).tolist() == [[False, False, False]]


# Targets and losses


def test_targets_by_hand() -> None:
    maps = torch.tensor([[[[0.2, 0.4], [0.3, 0.2]], [[-1.0, 0.0], [1.0, 1.0]], [[0.7, 0.7], [0.7, 0.7]]]])
    first = torch.tensor([[0, 1], [0.5, 0]])
    second = torch.tensor([[0, 0.5], [1, 1]])
    targets = ttd.tag_targets(maps, torch.tensor([[True, True, True]]))
    torch.testing.assert_close(targets[0], torch.stack([first, second, torch.zeros(2, 2)]))
    torch.testing.assert_close(ttd.union_target(targets)[0], torch.tensor([[0, 1], [1, 1]]).float())
    one = ttd.tag_targets(maps, torch.tensor([[True, False, False]]))
    torch.testing.assert_close(ttd.union_target(one)[0], first)
    assert not one[0, 1:].any()


@quick
@given(batches(), st.floats(0.5, 4), COSINE)
def test_targets_lie_in_0_1_and_ignore_an_affine_change(batch, slope: float, shift: float) -> None:  # noqa: ANN001
    maps, _, selected = batch
    maps = maps.double()
    targets = ttd.tag_targets(maps, selected)
    assert ((targets >= 0) & (targets <= 1)).all()
    assert not targets[~selected].any()
    wide = (maps.amax(dim=(2, 3)) - maps.amin(dim=(2, 3)) > 1e-3) & selected
    assert (targets[wide].amax(dim=(1, 2)) == 1).all()
    torch.testing.assert_close(ttd.tag_targets(slope * maps + shift, selected)[wide], targets[wide])


def test_calibration_by_hand() -> None:
    cosines = torch.tensor([0.25, 0.0, -1.0, 1.0])
    expected = [0.5, *(1 / (1 + math.exp(-logit)) for logit in (-2.5, -12.5, 7.5))]
    torch.testing.assert_close(ttd.calibrate(cosines), torch.tensor(expected))
    torch.testing.assert_close(ttd.calibrate(cosines, 1.0, 0.0), torch.sigmoid(cosines))
    assert ttd.calibrate(cosines.half()).dtype == torch.float32


def cross_entropy(p: float, target: float) -> float:
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


@pytest.mark.parametrize(("name", "element"), [("bce", cross_entropy), ("l1", lambda p, target: abs(p - target))])
def test_losses_by_hand(name: ttd.ElementLoss, element) -> None:  # noqa: ANN001
    """Two images of two cells: one with a tag that is selected and one that is not, one with a tag and padding."""
    tag_maps = torch.tensor([[[[0.2, 0.3]], [[0.5, 0.1]]], [[[0.0, 0.1]], [[9.0, 9.0]]]])
    caption_map = torch.tensor([[[0.1, 0.4]], [[0.2, 0.3]]])
    selected, valid = torch.tensor([[True, False], [False, False]]), torch.tensor([[True, True], [True, False]])

    def mean(cosines: list[float], targets: list[float]) -> float:
        pairs = zip(cosines, targets, strict=True)
        return sum(element(1 / (1 + math.exp(2.5 - 10 * s)), target) for s, target in pairs) / len(targets)

    tags = ((mean([0.2, 0.3], [0, 1]) + mean([0.5, 0.1], [0, 0])) / 2 + mean([0.0, 0.1], [0, 0])) / 2
    caption = (mean([0.1, 0.4], [0, 1]) + mean([0.2, 0.3], [0, 0])) / 2
    losses = ttd.ttd_loss(tag_maps, caption_map, selected, valid, name)
    torch.testing.assert_close(torch.stack(losses), torch.tensor([caption + tags, caption, tags]))


def test_slope_and_shift_of_the_loss_are_those_of_the_calibration() -> None:
    maps = torch.tensor([[[[0.0, 1.0]]]])
    losses = ttd.ttd_loss(maps, maps[:, 0], everywhere(maps), everywhere(maps), "l1", slope=2.0, shift=-1.0)
    distance = (ttd.calibrate(maps, 2.0, -1.0) - maps).abs().mean()
    torch.testing.assert_close(losses.caption, distance)
    torch.testing.assert_close(losses.tags, distance)


@quick
@given(batches(), st.sampled_from(LOSSES), st.sampled_from([-1.0, 1.0, math.nan, math.inf]))
def test_padding_changes_neither_loss_nor_gradient(batch, name: ttd.ElementLoss, value: float) -> None:  # noqa: ANN001
    maps, caption, valid = batch
    selected = ttd.select_tags(ttd.tag_scores(maps, valid), valid, 0.5)

    def run(tag_maps: Tensor, chosen: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tag_maps, caption_map = tag_maps.requires_grad_(), caption.clone().requires_grad_()
        losses = ttd.ttd_loss(tag_maps, caption_map, chosen, real, name)
        gradients = torch.autograd.grad(losses.total, [tag_maps, caption_map])
        return torch.stack(losses), *gradients

    losses, of_tags, of_caption = run(maps.clone(), selected, valid)
    more, of_more, of_same = run(padded(maps, value), padded(selected, 0), padded(valid, 0))
    torch.testing.assert_close(more, losses)
    torch.testing.assert_close(of_more, padded(of_tags, 0.0))
    torch.testing.assert_close(of_same, of_caption)


@quick
@given(batches(tagged=True), st.sampled_from(LOSSES), st.floats(0, 1))
def test_the_loss_of_a_batch_is_the_mean_of_its_images(batch, name, threshold: float) -> None:  # noqa: ANN001
    maps, caption, valid = batch
    selected = ttd.select_tags(ttd.tag_scores(maps, valid), valid, threshold)
    whole = torch.stack(ttd.ttd_loss(maps, caption, selected, valid, name))
    rows = [slice(row, row + 1) for row in range(len(maps))]
    alone = [torch.stack(ttd.ttd_loss(maps[i], caption[i], selected[i], valid[i], name)) for i in rows]
    torch.testing.assert_close(whole, torch.stack(alone).mean(dim=0))
    torch.testing.assert_close(whole[0], whole[1] + whole[2])


@pytest.mark.parametrize("name", LOSSES)
def test_captions_without_tags_are_left_out(name: ttd.ElementLoss) -> None:
    maps = torch.tensor([[[[0.1, 0.3]]], [[[math.nan, 0.3]]]], requires_grad=True)
    caption = torch.tensor([[[0.2, 0.3]], [[math.nan, 0.1]]], requires_grad=True)
    valid = torch.tensor([[True], [False]])
    losses = ttd.ttd_loss(maps, caption, valid, valid, name)
    first = ttd.ttd_loss(maps[:1], caption[:1], valid[:1], valid[:1], name)
    torch.testing.assert_close(torch.stack(losses), torch.stack(first))
    none = ttd.ttd_loss(maps, caption, valid & False, valid & False, name)
    assert torch.stack(none).tolist() == [0, 0, 0]
    for gradient in torch.autograd.grad(none.total, [maps, caption]):
        assert not gradient.any()


def test_the_gradient_is_prediction_minus_target_and_none_flows_through_targets() -> None:
    """With the targets as constants, that of binary cross-entropy is known; each part has one source alone."""
    maps = torch.tensor([[[[0.1, 0.2, 0.4]], [[0.3, 0.2, 0.1]]]], requires_grad=True)
    caption = torch.tensor([[[0.0, 0.5, 0.2]]], requires_grad=True)
    selected, valid = torch.tensor([[True, False]]), torch.tensor([[True, True]])
    losses = ttd.ttd_loss(maps, caption, selected, valid)
    targets = torch.tensor([[[[0, 1 / 3, 1]], [[0, 0, 0]]]])
    (of_maps,) = torch.autograd.grad(losses.tags, maps, retain_graph=True)
    torch.testing.assert_close(of_maps, 10 * (ttd.calibrate(maps.detach()) - targets) / 6)
    (of_caption,) = torch.autograd.grad(losses.caption, caption, retain_graph=True)
    torch.testing.assert_close(of_caption, 10 * (ttd.calibrate(caption.detach()) - targets[:, 0]) / 3)
    crossed = torch.autograd.grad(losses.caption, maps, allow_unused=True, retain_graph=True)
    assert crossed[0] is None or not crossed[0].any()
    assert torch.autograd.grad(losses.tags, caption, allow_unused=True)[0] is None


def test_scores_targets_and_masks_carry_no_gradient() -> None:
    maps = torch.rand(2, 3, 2, 2, requires_grad=True)
    flat, valid = maps.flatten(2), everywhere(maps)
    for rule in RULES:
        assert not ttd.tag_scores(maps, valid, rule).requires_grad
    assert not ttd.image_scores(flat[:, 0], flat, valid).requires_grad
    assert not ttd.tag_targets(maps, valid).requires_grad
    assert not ttd.union_target(maps).requires_grad
    assert not ttd.pamr(maps, maps).requires_grad


def test_scores_and_losses_of_half_precision_are_float32() -> None:
    maps, caption = torch.rand(2, 3, 2, 2), torch.rand(2, 2, 2)
    valid = everywhere(maps)
    for dtype in (torch.float16, torch.bfloat16):
        low, low_caption = maps.to(dtype), caption.to(dtype)
        for rule in RULES:
            torch.testing.assert_close(ttd.tag_scores(low, valid, rule), ttd.tag_scores(low.float(), valid, rule))
        torch.testing.assert_close(
            torch.stack(ttd.ttd_loss(low, low_caption, valid, valid)),
            torch.stack(ttd.ttd_loss(low.float(), low_caption.float(), valid, valid)),
        )


@quick
@given(batches(), st.sampled_from(RULES), st.sampled_from(LOSSES), st.sampled_from([1e-6, 1e4, 1e30]))
def test_extreme_scales_stay_finite(batch, rule: ttd.Rule, name: ttd.ElementLoss, scale: float) -> None:  # noqa: ANN001
    maps, caption, valid = batch
    maps, caption = maps.sign().requires_grad_(), caption.sign().requires_grad_()
    scores = ttd.tag_scores(maps, valid, rule, scale)
    assert ((scores >= 0) & (scores <= 1)).all()
    losses = ttd.ttd_loss(maps, caption, ttd.select_tags(scores, valid, 0.5), valid, name, slope=scale)
    assert torch.stack(losses).isfinite().all()
    for gradient in torch.autograd.grad(losses.total, [maps, caption]):
        assert gradient.isfinite().all()
    flat = scale * maps.detach().flatten(2)
    assert ttd.image_scores(flat[:, 0], flat, valid).isfinite().all()


def test_empty_batches() -> None:
    maps, caption, valid = torch.zeros(0, 2, 3, 3), torch.zeros(0, 3, 3), torch.zeros(0, 2, dtype=torch.bool)
    for rule in RULES:
        assert ttd.tag_scores(maps, valid, rule).shape == (0, 2)
    assert ttd.image_scores(torch.zeros(0, 4), torch.zeros(0, 2, 4), valid).shape == (0, 2)
    assert torch.stack(ttd.ttd_loss(maps, caption, valid, valid)).tolist() == [0, 0, 0]
    assert ttd.pamr(torch.zeros(0, 3, 4, 4), torch.zeros(0, 2, 4, 4)).shape == (0, 2, 4, 4)


# PAMR


def slow_pamr(image: np.ndarray, mask: np.ndarray, dilations: Sequence[int], iterations: int) -> np.ndarray:
    """One image [3, H, W] and one mask [H, W], pixel by pixel."""
    channels, height, width = image.shape
    around = [step for step in product((-1, 0, 1), repeat=2) if step != (0, 0)]

    def near(y: int, x: int) -> list[tuple[int, int]]:
        places = [(y + d * down, x + d * right) for d in dilations for down, right in around]
        return [(min(max(row, 0), height - 1), min(max(column, 0), width - 1)) for row, column in places]

    weights = {}
    for y, x in product(range(height), range(width)):
        exponents = np.zeros(len(near(y, x)))
        for c in range(channels):
            values = [image[c, row, column] for row, column in near(y, x)]
            std = np.std([*values, *[image[c, y, x]] * len(dilations)], ddof=1)
            exponents -= np.abs(np.array(values) - image[c, y, x]) / (0.1 * std + 1e-8) / channels
        weights[y, x] = np.exp(exponents) / np.exp(exponents).sum()
    for _ in range(iterations):
        before, mask = mask, mask.copy()
        for (y, x), shares in weights.items():
            mask[y, x] = sum(w * before[place] for w, place in zip(shares, near(y, x), strict=True))
    return mask


@pytest.mark.parametrize(
    ("dilations", "iterations"), [((1,), 1), ((1, 2), 3), (ttd.DILATIONS, 10), ((3, 1), 2), ((1,), 0)]
)
def test_pamr_equals_a_slow_loop(dilations: tuple[int, ...], iterations: int) -> None:
    source = np.random.default_rng(0)
    images, masks = source.random((2, 3, 6, 7)), source.normal(size=(2, 3, 6, 7))
    images[1, :, :3] = 0.3  # neighbourhoods that are constant
    refined = ttd.pamr(torch.from_numpy(images), torch.from_numpy(masks), dilations, iterations, chunk=2)
    expected = [
        [slow_pamr(image, mask, dilations, iterations) for mask in classes]
        for image, classes in zip(images, masks, strict=True)
    ]
    torch.testing.assert_close(refined, torch.from_numpy(np.array(expected)))
    single = ttd.pamr(torch.from_numpy(images).float(), torch.from_numpy(masks).float(), dilations, iterations)
    torch.testing.assert_close(single, torch.from_numpy(np.array(expected)).float(), rtol=1e-3, atol=1e-4)


def test_pamr_s_defaults_are_those_of_its_authors() -> None:
    source = torch.manual_seed(3)
    images, masks = torch.rand(1, 3, 30, 9, generator=source), torch.rand(1, 2, 30, 9, generator=source)
    assert torch.equal(ttd.pamr(images, masks), ttd.pamr(images, masks, (1, 2, 4, 8, 12, 24), 10))


def test_pamr_draws_a_rough_mask_to_the_edge_of_a_thing() -> None:
    thing = torch.zeros(12, 12, dtype=torch.bool)
    thing[3:9, 3:9] = True
    images = thing.float().expand(1, 3, 12, 12) + 0.01 * torch.rand(1, 3, 12, 12, generator=torch.manual_seed(0))
    rough = torch.zeros(1, 1, 12, 12)
    rough[..., 2:8, 2:8] = 1
    refined = ttd.pamr(images, rough, dilations=(1, 2), iterations=10)[0, 0] > 0.5
    before, after = (((mask & thing).sum() / (mask | thing).sum()) for mask in (rough[0, 0].bool(), refined))
    assert after > before


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    images, channels, classes, height, width = (draw(st.integers(1, high)) for high in (2, 3, 5, 6, 6))
    size = (images, channels, height, width)
    return draw(tensors(size)), draw(tensors((images, classes, height, width), st.floats(-100, 100, width=32)))


@quick
@given(pictures(), st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 3))
def test_pamr_in_chunks_is_whole_and_within_the_range(pair, chunk, dilations, iterations) -> None:  # noqa: ANN001
    images, masks = pair
    given_masks = masks.clone()
    whole = ttd.pamr(images, masks, dilations, iterations)
    assert torch.equal(ttd.pamr(images, masks, dilations, iterations, chunk), whole)
    assert torch.equal(masks, given_masks)
    assert (whole >= masks.amin(dim=(2, 3), keepdim=True)).all()
    assert (whole <= masks.amax(dim=(2, 3), keepdim=True)).all()
    if iterations == 0:
        assert torch.equal(whole, masks)


def test_chunks_equal_the_whole_on_a_larger_image() -> None:
    source = torch.manual_seed(1)
    images, masks = torch.rand(2, 3, 37, 53, generator=source), torch.rand(2, 7, 37, 53, generator=source)
    whole = ttd.pamr(images, masks, chunk=100)
    for chunk in (1, 3, 7):
        assert torch.equal(ttd.pamr(images, masks, chunk=chunk), whole)


@quick
@given(pictures(), st.sampled_from([0.0, 1.0, 1e18]), st.floats(-10, 10, width=32))
def test_pamr_keeps_constants_whatever_the_image(pair, brightness: float, value: float) -> None:  # noqa: ANN001
    images, masks = pair
    constant = torch.full_like(masks, value)
    assert torch.equal(ttd.pamr(brightness * images, constant, iterations=2), constant)
    assert ttd.pamr(brightness * images, masks, iterations=2).isfinite().all()


# Windows


def test_windows_by_hand() -> None:
    places = ttd.sliding_windows(5, 10, window=4, stride=2)
    corners = [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in places]
    assert corners == [(y, y + 4, x, x + 4) for y in (0, 1) for x in (0, 2, 4, 6)]
    assert ttd.sliding_windows(3, 2, window=4, stride=2) == [(slice(0, 3), slice(0, 2))]
    assert ttd.sliding_windows(4, 4, window=4, stride=1) == [(slice(0, 4), slice(0, 4))]


sizes = st.tuples(st.integers(1, 20), st.integers(1, 20))
steps = st.integers(1, 8).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window)))


@quick
@given(sizes, steps)
def test_windows_cover_each_pixel_and_lie_inside(size: tuple[int, int], step: tuple[int, int]) -> None:
    covered = np.zeros(size, dtype=int)
    seen = set()
    for rows, columns in ttd.sliding_windows(*size, *step):
        assert covered[rows, columns].shape == (min(step[0], size[0]), min(step[0], size[1]))
        assert rows.start >= 0
        assert columns.start >= 0
        covered[rows, columns] += 1
        seen.add((rows.start, columns.start))
    assert covered.all()
    assert len(seen) == len(ttd.sliding_windows(*size, *step))


@quick
@given(sizes, steps, st.integers(1, 3), st.data())
def test_merging_crops_gives_the_map_and_constants_the_constant(size, step, classes, data) -> None:  # noqa: ANN001
    places = ttd.sliding_windows(*size, *step)
    whole = data.draw(tensors((classes, *size), st.floats(-100, 100, width=32)))
    crops = (whole[..., rows, columns] for rows, columns in places)
    torch.testing.assert_close(ttd.merge_windows(crops, places, *size), whole)
    constants = [torch.full((rows.stop - rows.start, columns.stop - columns.start), 0.3) for rows, columns in places]
    torch.testing.assert_close(ttd.merge_windows(constants, places, *size), torch.full(size, 0.3))


def test_merging_averages_by_hand_and_keeps_its_input() -> None:
    places = ttd.sliding_windows(2, 3, window=2, stride=1)
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[6.0, 5.0], [8.0, 7.0]]]).half()
    given_maps = maps.clone()
    merged = ttd.merge_windows(maps, places, 2, 3)
    assert merged.dtype == torch.float32
    assert merged.tolist() == [[1, 4, 5], [3, 6, 7]]
    assert torch.equal(maps, given_maps)


# Shares of the confusion matrix


def test_shares_by_hand() -> None:
    confusion = torch.tensor([[5, 1, 0, 0], [3, 2, 0, 0], [0, 0, 0, 0], [0, 4, 0, 0]])
    shares = ttd.confusion_shares(confusion)
    # Class 0: P 8, T 6, TP 5; class 1: P 7, T 5, TP 2; class 2 nowhere; class 3: P 0, T 4, TP 0.
    torch.testing.assert_close(shares.iou, torch.tensor([5 / 9, 0.2, math.nan, 0]).double(), equal_nan=True)
    torch.testing.assert_close(shares.fpr, torch.tensor([3 / 9, 0.5, math.nan, 0]).double(), equal_nan=True)
    torch.testing.assert_close(shares.fnr, torch.tensor([1 / 9, 0.3, math.nan, 1]).double(), equal_nan=True)
    means = torch.stack([shares.mean_iou, shares.mean_fpr, shares.mean_fnr])
    torch.testing.assert_close(means, torch.tensor([5 / 9 + 0.2, 3 / 9 + 0.5, 1 / 9 + 1.3]).double() / 3)


def test_shares_of_nothing_are_nan_and_large_counts_are_exact() -> None:
    assert ttd.confusion_shares(torch.zeros(2, 2)).mean_iou.isnan()
    huge = 2**52
    assert ttd.confusion_shares(torch.tensor([[huge, 0], [0, 1]])).iou.tolist() == [1, 1]
    assert ttd.confusion_shares(torch.tensor([[huge - 1, 1], [0, 0]])).fnr[0] == 1 / huge


counts = st.integers(1, 5).flatmap(lambda size: arrays.arrays(np.int64, (size, size), elements=st.integers(0, 9)))


@quick
@given(counts)
def test_the_shares_sum_to_1_and_a_transposed_matrix_swaps_two(confusion: np.ndarray) -> None:
    shares = ttd.confusion_shares(torch.from_numpy(confusion))
    seen = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    total = (shares.iou + shares.fpr + shares.fnr).numpy()
    assert np.isnan(total).tolist() == (~seen).tolist()
    assert np.allclose(total[seen], 1)
    assert np.allclose(shares.mean_iou + shares.mean_fpr + shares.mean_fnr, 1) or not seen.any()
    swapped = ttd.confusion_shares(torch.from_numpy(confusion.T.copy()))
    torch.testing.assert_close(swapped.fpr, shares.fnr, equal_nan=True)


def test_the_mean_iou_is_the_one_of_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

    source = torch.manual_seed(0)
    predicted, true = (torch.randint(0, 4, (500,), generator=source) for _ in range(2))
    true[:50] = 255
    confusion = multiclass_confusion_matrix(predicted, true, num_classes=6, ignore_index=255)
    expected = multiclass_jaccard_index(predicted, true, num_classes=6, average="macro", ignore_index=255)
    torch.testing.assert_close(ttd.confusion_shares(confusion).mean_iou.float(), expected)


# Unlawful arguments

MAPS, CAPTION, FLAT = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5), torch.zeros(2, 3)
ALL, NONE = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
PLACES = ttd.sliding_windows(2, 3, window=2, stride=1)
PARTS = [torch.zeros(2, 2)] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ttd.tag_scores(CAPTION, ALL), r"maps must be floating point \[B, K, h, w\]"),
        (lambda: ttd.tag_scores(MAPS, ALL.float()), r"valid must be bool \[2, 3\], but is torch.float32 \[2, 3\]"),
        (lambda: ttd.tag_scores(MAPS, ALL[:, :2]), r"valid must be bool \[2, 3\]"),
        (lambda: ttd.tag_scores(MAPS, ALL, "max"), "rule must be softmax_max or cosine_minmax, but is 'max'"),
        (lambda: ttd.tag_scores(MAPS, ALL, scale=0.0), "scale must be greater than 0"),
        (lambda: ttd.image_scores(FLAT, MAPS[..., 0], ALL), "image .* do not fit"),
        (lambda: ttd.text_scores(FLAT, MAPS[..., 0], ALL), "caption .* do not fit"),
        (lambda: ttd.text_scores(FLAT[:1], MAPS[..., :3, 0], ALL), "caption .* do not fit"),
        (lambda: ttd.image_scores(MAPS, MAPS, ALL), r"image must be floating point \[B, D\]"),
        (lambda: ttd.image_scores(FLAT, FLAT, ALL), r"tags must be floating point \[B, K, D\]"),
        (lambda: ttd.image_scores(FLAT, MAPS[..., :3, 0], NONE[:1]), "valid must be bool"),
        (lambda: ttd.image_scores(FLAT, MAPS[..., :3, 0], ALL, math.nan), "scale"),
        (lambda: ttd.select_tags(FLAT.long(), ALL, 0.5), r"scores must be floating point \[B, K\]"),
        (lambda: ttd.select_tags(FLAT + 2, ALL, 0.5), r"scores must lie in \[0, 1\]"),
        (lambda: ttd.select_tags(FLAT * math.nan, ALL, 0.5), "scores must lie"),
        (lambda: ttd.select_tags(FLAT, ALL, 1.5), r"threshold must be in \[0, 1\], but is 1.5"),
        (lambda: ttd.select_tags(FLAT, ALL.long(), 0.5), "valid"),
        (lambda: ttd.tag_targets(CAPTION, ALL), r"maps must be floating point \[B, K, h, w\]"),
        (lambda: ttd.tag_targets(MAPS, ALL[:1]), "selected must be bool"),
        (lambda: ttd.union_target(CAPTION), r"targets must be floating point \[B, K, h, w\]"),
        (lambda: ttd.calibrate(FLAT, slope=0.0), "slope must be greater than 0"),
        (lambda: ttd.calibrate(FLAT, shift=math.inf), "shift must be finite"),
        (lambda: ttd.ttd_loss(CAPTION, CAPTION, ALL, ALL), r"tag_maps must be floating point \[B, K, h, w\]"),
        (lambda: ttd.ttd_loss(MAPS, MAPS, ALL, ALL), r"caption_map must be floating point \[B, h, w\]"),
        (lambda: ttd.ttd_loss(MAPS, CAPTION[..., 1:], ALL, ALL), "do not fit"),
        (lambda: ttd.ttd_loss(MAPS, CAPTION, ALL, NONE), "selected must be within valid"),
        (lambda: ttd.ttd_loss(MAPS, CAPTION, ALL, ALL[:1]), "valid must be bool"),
        (lambda: ttd.ttd_loss(MAPS, CAPTION, ALL[:1], ALL), "selected must be bool"),
        (lambda: ttd.ttd_loss(MAPS, CAPTION, ALL.float(), ALL), "selected must be bool"),
        (lambda: ttd.ttd_loss(MAPS, CAPTION, ALL, ALL, "mse"), "loss must be bce or l1, but is 'mse'"),
        (lambda: ttd.ttd_loss(MAPS, CAPTION, ALL, ALL, slope=-1.0), "slope"),
        (lambda: ttd.pamr(CAPTION, MAPS), r"images must be floating point \[B, 3, H, W\]"),
        (lambda: ttd.pamr(MAPS, MAPS.long()), r"masks must be floating point \[B, C, H, W\]"),
        (lambda: ttd.pamr(MAPS, MAPS[..., 1:]), "do not fit"),
        (lambda: ttd.pamr(MAPS, MAPS[:1]), "do not fit"),
        (lambda: ttd.pamr(MAPS, MAPS, dilations=()), "dilations must be one or more"),
        (lambda: ttd.pamr(MAPS, MAPS, dilations=(1, 0)), r"dilations .* are \[1, 0\]"),
        (lambda: ttd.pamr(MAPS, MAPS, iterations=-1), "iterations must be 0 or greater"),
        (lambda: ttd.pamr(MAPS, MAPS, chunk=0), "chunk must be 1 or greater"),
        (lambda: ttd.sliding_windows(0, 3, 2, 1), "height must be 1 or greater"),
        (lambda: ttd.sliding_windows(3, 0, 2, 1), "width must be 1 or greater"),
        (lambda: ttd.sliding_windows(3, 3, 0, 1), "window must be 1 or greater"),
        (lambda: ttd.sliding_windows(3, 3, 2, 3), r"stride must be in \[1, window = 2\]"),
        (lambda: ttd.sliding_windows(3, 3, 2, 0), "stride"),
        (lambda: ttd.merge_windows(PARTS[:1], PLACES, 2, 3), "one for each of 2 places, but are 1"),
        (lambda: ttd.merge_windows(PARTS * 2, PLACES, 2, 3), "but are more"),
        (lambda: ttd.merge_windows([PARTS[0], PARTS[0][:1]], PLACES, 2, 3), r"map 1 must be \[2, 2\], but is \[1, 2\]"),
        (lambda: ttd.merge_windows(PARTS, PLACES, 2, 4), "cover 2 x 4 pixels, but leave 2 out"),
        (lambda: ttd.merge_windows([], [], 2, 4), "leave 8 out"),
        (lambda: ttd.confusion_shares(FLAT), r"confusion must be \[C, C\], but is \[2, 3\]"),
        (lambda: ttd.confusion_shares(torch.zeros(0, 0)), "confusion"),
        (lambda: ttd.confusion_shares(FLAT[0]), r"confusion must be \[C, C\], but is \[3\]"),
        (lambda: ttd.confusion_shares(torch.zeros(2, 2, 2)), r"confusion must be \[C, C\], but is \[2, 2, 2\]"),
        (lambda: ttd.confusion_shares(torch.tensor([[-1]])), "confusion must be finite"),
    ],
)
def test_unlawful_arguments_are_named(call, message: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=message):
        call()
