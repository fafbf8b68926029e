"""CCD's labels against hand-computed values, slow references and published scores.

Where the released code has a defect, a test computes what it does and shows that the function does not.
"""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from random_matrices import matrices, permutations
from torch import Tensor

from clipdistill.evaluation.metrics import mean_average_precision
from clipdistill.methods import ccd, cdul

CACHE = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "voc12_clip_rn50x64.npz"

# What the released VOC 2012 script sets.
FLOOR, RATIO, MAX_ENTROPY = 1 / 20, 0.2, 2.0

quick = settings(deadline=None, max_examples=40)
UNIT = st.floats(0, 1, width=32)
RAGGED = torch.tensor([0, 2, 2, 5])


@st.composite
def updates(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old labels, scores of views, offsets (images without views among them) and a bias."""
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))
    classes = draw(st.integers(1, 4))
    old, views = (
        draw(arrays.arrays(np.float32, (rows, classes), elements=UNIT)) for rows in (len(counts), sum(counts))
    )
    bias = draw(arrays.arrays(np.float32, classes, elements=st.floats(0.125, 1, width=32)))
    return torch.from_numpy(old), torch.from_numpy(views), torch.tensor([0, *np.cumsum(counts)]), torch.from_numpy(bias)


def released_bias(scores: Tensor, max_entropy: float) -> Tensor:
    """The released code's bias: sums and counts, image by image, and their quotient."""
    total, count = torch.zeros(scores.shape[1]), torch.zeros(scores.shape[1])
    for row in scores:
        if -sum(p * math.log(p) for p in row.tolist() if p) <= max_entropy:
            total[row.argmax()] += row.max()
            count[row.argmax()] += 1
    return total / count


# confident, image_weights


def test_entropy_is_in_nats_and_the_limit_is_included() -> None:
    scores = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    assert ccd.confident(scores, 0.0).tolist() == [True, False, False]
    assert ccd.confident(scores, math.log(2)).tolist() == [True, True, False]
    assert ccd.confident(scores, math.log(2) - 1e-6).tolist() == [True, False, False]
    assert ccd.confident(scores, math.log(4)).all()


@quick
@given(matrices(st.floats(0.0078125, 1, width=32)), st.floats(0.01, 3), st.floats(0.01, 100))
def test_confidence_is_that_of_the_row_scaled_to_sum_1(scores: Tensor, max_entropy: float, scale: float) -> None:
    entropy = torch.distributions.Categorical(probs=scores.double()).entropy()
    sure = (entropy - max_entropy).abs() > 1e-5
    assert torch.equal(ccd.confident(scores, max_entropy)[sure], (entropy <= max_entropy)[sure])
    assert torch.equal(ccd.confident(scores * scale, max_entropy)[sure], (entropy <= max_entropy)[sure])


@pytest.mark.parametrize("classes", [1, 2, 3, 20, 80, 81])
def test_the_logarithm_of_the_number_of_classes_keeps_every_image(classes: int) -> None:
    assert ccd.confident(torch.full((2, classes), 1 / classes), math.log(classes)).all()


def test_a_row_of_zeros_is_never_confident() -> None:
    assert ccd.confident(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), 100.0).tolist() == [False, True]


def test_weights_are_the_flag_plus_what_is_added() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert torch.equal(ccd.image_weights(scores, 0.5, added=0.1), torch.tensor([1.0, 0.1]))
    assert torch.equal(ccd.image_weights(scores, 0.5, added=0.0), torch.tensor([1.0, 0.0]))


def test_the_release_switches_the_flag_off_for_the_loss_but_not_for_the_bias() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.6, 0.4]])
    assert torch.equal(ccd.image_weights(scores, 0.5, added=1.0), torch.ones(2))
    assert not torch.equal(ccd.class_bias(scores, 0.5), ccd.class_bias(scores, 1.0))


# class_bias


def test_bias_by_hand() -> None:
    scores = torch.tensor([[0.90, 0.05, 0.05], [0.70, 0.20, 0.10], [0.10, 0.60, 0.30], [0.34, 0.33, 0.33]])
    # Entropies 0.39, 0.80, 0.90, 1.10: the last image is left out. No image has the third class on top.
    expected = torch.tensor([(0.90 + 0.70) / 2, 0.60, (0.90 + 0.70 + 0.60) / 3])
    torch.testing.assert_close(ccd.class_bias(scores, max_entropy=1.0), expected)
    # Two images are asked for: the second class, too, takes the mean of all kept images.
    expected[1] = expected[2]
    torch.testing.assert_close(ccd.class_bias(scores, max_entropy=1.0, min_count=2), expected)
    # No image is kept: the mean of all images.
    torch.testing.assert_close(ccd.class_bias(scores, max_entropy=0.1), torch.full((3,), 2.54 / 4))


@quick
@given(matrices(st.floats(-8, 8, width=16)), st.floats(0.1, 3))
def test_bias_is_the_released_one_where_that_is_defined(logits: Tensor, max_entropy: float) -> None:
    scores = torch.softmax(logits, dim=1)
    expected = released_bias(scores, max_entropy)
    result = ccd.class_bias(scores, max_entropy)
    defined = ~expected.isnan()
    near = (torch.special.entr(scores.double()).sum(dim=1) - max_entropy).abs() < 1e-5
    if not near.any():
        torch.testing.assert_close(result[defined], expected[defined])


def test_a_class_that_is_nobodys_top_has_a_bias_where_the_release_has_nan() -> None:
    scores = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]])
    released = scores / released_bias(scores, MAX_ENTROPY)
    assert released[:, 2].isnan().all()
    bias = ccd.class_bias(scores, MAX_ENTROPY)
    torch.testing.assert_close(bias, torch.tensor([0.8, 0.7, 0.75]))
    assert ccd.debias(scores, bias).isfinite().all()


@quick
@given(matrices(UNIT), st.floats(0, 3), st.integers(1, 4))
def test_bias_is_never_nan_or_0_and_lies_among_the_top_scores(scores: Tensor, max_entropy: float, count: int) -> None:
    if not (scores > 0).any():
        with pytest.raises(ValueError, match="score above 0"):
            ccd.class_bias(scores, max_entropy, count)
        return
    bias = ccd.class_bias(scores, max_entropy, count)
    assert bias.shape == scores.shape[1:]
    assert bias.dtype == torch.float32
    assert (bias.isfinite() & (bias > 0)).all()
    assert (bias <= scores.max() * (1 + 1e-6) + torch.finfo(torch.float32).tiny).all()


def test_the_smallest_scores_still_give_a_bias_that_divides() -> None:
    bias = ccd.class_bias(torch.tensor([[1e-45, 0.0], *[[0.0, 0.0]] * 9]), max_entropy=0.0, min_count=2)
    assert (bias > 0).all()
    assert (
        ccd.class_bias(torch.tensor([[1e-45, 0.0], *[[0.0, 0.0]] * 9]), max_entropy=0.0, min_count=2).isfinite().all()
    )


@quick
@given(matrices(st.floats(0.0078125, 1, width=32)), st.randoms(use_true_random=False))
def test_bias_commutes_with_permutations(scores: Tensor, random) -> None:  # noqa: ANN001
    rows, columns = permutations(scores, random)
    # Distinct values, so that every image has one top-1.
    scores = scores + torch.arange(scores.numel()).view_as(scores) * 2e-3
    result = ccd.class_bias(scores[rows][:, columns], max_entropy=1.0)
    torch.testing.assert_close(result, ccd.class_bias(scores, max_entropy=1.0)[columns])


def test_bias_keeps_double_precision() -> None:
    scores = torch.tensor([[0.3, 0.1]], dtype=torch.float64)
    assert ccd.class_bias(scores, 2.0).tolist() == [0.3, 0.3]
    assert ccd.class_bias(scores.half(), 2.0).dtype == torch.float32


# debias


def test_first_labels_by_hand_with_the_released_parameters() -> None:
    scores, bias = torch.tensor([[0.90, 0.08, 0.02]]), torch.tensor([0.72, 0.80, 0.50])
    labels = ccd.debias(scores, bias, FLOOR)
    torch.testing.assert_close(labels, torch.tensor([[1.25, 0.10, 0.10]]))  # 0.9/0.72, 0.08/0.8, 0.05/0.5
    torch.testing.assert_close(labels.clamp(0, 1), torch.tensor([[1.00, 0.10, 0.10]]))


def test_measuring_after_the_clamp_ties_what_debiasing_keeps_apart() -> None:
    scores, truth = torch.tensor([[0.95, 0.05], [0.85, 0.15]]), torch.tensor([[1, 0], [0, 1]])
    bias = torch.tensor([0.8, 0.8])
    labels = ccd.debias(scores, bias)
    released = torch.clamp(torch.maximum(scores, torch.tensor(FLOOR)) / bias, 0, 1)
    assert released[0, 0] == released[1, 0] == 1
    assert mean_average_precision(released, truth)[0] < mean_average_precision(scores, truth)[0]
    assert mean_average_precision(labels, truth)[0] == mean_average_precision(scores, truth)[0] == 100


@quick
@given(matrices(st.floats(0.0625, 1, width=16)), st.floats(0, 1))
def test_debias_floors_then_divides(scores: Tensor, floor: float) -> None:
    bias = torch.linspace(0.25, 1, scores.shape[1])
    result = ccd.debias(scores, bias, floor)
    expected = [[max(p, floor) / b for p, b in zip(row, bias.tolist(), strict=True)] for row in scores.tolist()]
    torch.testing.assert_close(result, torch.tensor(expected))


# refine


def slow_refine(old: Tensor, views: Tensor, offset: Tensor, bias: Tensor, ratio: float, floor: float) -> Tensor:
    rows = []
    for row, (start, stop) in zip(old, pairwise(offset.tolist()), strict=True):
        if start == stop:
            rows.append(row)
            continue
        highest = torch.stack([torch.tensor([max(p, floor) for p in view.tolist()]) for view in views[start:stop]])
        rows.append(ratio * row + (1 - ratio) * highest.max(dim=0).values / bias)
    return torch.stack(rows)


def test_update_by_hand_with_the_released_parameters() -> None:
    old = torch.tensor([[1.00, 0.10, 0.10]])
    views = torch.tensor([[0.60, 0.30, 0.01], [0.10, 0.88, 0.02]])
    result = ccd.refine(old, views, torch.tensor([0, 2]), torch.tensor([0.75, 0.80, 0.50]), RATIO, FLOOR)
    # 0.2 * 1 + 0.8 * 0.6 / 0.75; 0.2 * 0.1 + 0.8 * 0.88 / 0.8; 0.2 * 0.1 + 0.8 * 0.05 / 0.5
    torch.testing.assert_close(result, torch.tensor([[0.84, 0.90, 0.10]]))


@quick
@given(updates(), st.floats(0, 1), st.floats(0, 0.5))
def test_refine_equals_a_loop_over_the_images(
    update: tuple[Tensor, Tensor, Tensor, Tensor], ratio: float, floor: float
) -> None:
    result = ccd.refine(*update, ratio, floor)
    assert not result.isnan().any()
    torch.testing.assert_close(result, slow_refine(*update, ratio, floor))


@quick
@given(updates(), st.floats(0, 1), st.floats(0, 0.5))
def test_an_image_without_a_view_keeps_its_labels(
    update: tuple[Tensor, Tensor, Tensor, Tensor], ratio: float, floor: float
) -> None:
    old, _, offset, _ = update
    unseen = offset.diff() == 0
    assert torch.equal(ccd.refine(*update, ratio, floor)[unseen], old[unseen])


def test_the_release_pulls_an_image_without_a_view_to_the_floor() -> None:
    old, bias = torch.tensor([[0.9, 0.4]]), torch.tensor([0.8, 0.5])
    released = RATIO * old + (1 - RATIO) * torch.maximum(torch.zeros(1, 2), torch.tensor(FLOOR)) / bias
    torch.testing.assert_close(released, torch.tensor([[0.23, 0.16]]))
    assert torch.equal(ccd.refine(old, torch.zeros(0, 2), torch.tensor([0, 0]), bias, RATIO, FLOOR), old)


@quick
@given(updates(), st.floats(0, 0.5))
def test_ratio_1_returns_the_old_labels_however_often(
    update: tuple[Tensor, Tensor, Tensor, Tensor], floor: float
) -> None:
    old, *rest = update
    once = ccd.refine(old, *rest, 1.0, floor)
    assert torch.equal(once, old)
    assert torch.equal(ccd.refine(once, *rest, 1.0, floor), old)


def test_ratio_1_returns_the_old_labels_where_the_new_ones_overflow() -> None:
    old, bias = torch.tensor([[0.5]]), torch.tensor([1e-45])
    assert torch.equal(ccd.refine(old, torch.ones(1, 1), torch.tensor([0, 1]), bias, 1.0), old)


@quick
@given(updates(), st.floats(0, 1))
def test_refine_by_parts_equals_refine_of_the_whole(
    update: tuple[Tensor, Tensor, Tensor, Tensor], ratio: float
) -> None:
    old, views, offset, bias = update
    whole = ccd.refine(*update, ratio, FLOOR)
    for image, (start, stop) in enumerate(pairwise(offset.tolist())):
        part = old[image : image + 1], views[start:stop], torch.tensor([0, stop - start]), bias
        assert torch.equal(ccd.refine(*part, ratio, FLOOR), whole[image : image + 1])


def test_refine_neither_clamps_nor_changes_its_input() -> None:
    old, views = torch.tensor([[1.5]]), torch.tensor([[1.0]])
    result = ccd.refine(old, views, torch.tensor([0, 1]), torch.tensor([0.5]), 0.5)
    assert result.tolist() == [[1.75]]
    assert old.tolist() == [[1.5]]


def test_refine_of_half_precision_and_of_no_images() -> None:
    half = ccd.refine(torch.ones(1, 2).half(), torch.ones(1, 2).half(), torch.tensor([0, 1]), torch.ones(2), 0.5)
    assert half.dtype == torch.float32
    assert ccd.refine(torch.zeros(0, 2), torch.zeros(0, 2), torch.tensor([0]), torch.ones(2), 0.5).shape == (0, 2)


# Published scores


@pytest.mark.skipif(not CACHE.is_file(), reason=f"{CACHE.name} is not here")
def test_published_scores_lose_by_clamp_and_floor_what_debiasing_keeps() -> None:
    with np.load(CACHE, allow_pickle=False) as archive:
        scores, truth = cdul.scores(torch.from_numpy(archive["global_cos_centred"])), archive["labels_nodifficult"]
    bias = ccd.class_bias(scores, MAX_ENTROPY)
    labels, floored = ccd.debias(scores, bias), ccd.debias(scores, bias, FLOOR)
    found = [mean_average_precision(kind, truth)[0] for kind in (labels, labels.clamp(0, 1), floored.clamp(0, 1))]
    assert found == pytest.approx([85.34, 83.96, 79.94], abs=0.01)
    assert found[0] == pytest.approx(mean_average_precision(scores, truth)[0], abs=1e-3)
    assert (~ccd.confident(scores, MAX_ENTROPY)).double().mean() == pytest.approx(0.024, abs=5e-4)
    assert (bias.min().item(), bias.max().item()) == pytest.approx((0.70, 0.97), abs=0.005)


# Unlawful arguments

ONE, BIAS = torch.ones(2, 3), torch.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ccd.confident(BIAS, 2.0), r"scores must be floating point \[N, C\], but is torch.float32 \(3,\)"),
        (lambda: ccd.confident(ONE.long(), 2.0), "scores must be floating point"),
        (lambda: ccd.confident(torch.zeros(2, 0), 2.0), "scores must be floating point"),
        (lambda: ccd.confident(-ONE, 2.0), "scores must be finite and 0 or greater"),
        (lambda: ccd.confident(ONE / 0, 2.0), "scores must be finite"),
        (lambda: ccd.confident(ONE * math.nan, 2.0), "scores must be finite"),
        (lambda: ccd.confident(ONE, -0.1), "max_entropy must be 0 or greater, but is -0.1"),
        (lambda: ccd.confident(ONE, math.nan), "max_entropy"),
        (lambda: ccd.image_weights(ONE, 2.0, -1), "added must be 0 or greater"),
        (lambda: ccd.class_bias(torch.zeros(0, 3), 2.0), "score above 0"),
        (lambda: ccd.class_bias(torch.zeros(2, 3), 2.0), "score above 0"),
        (lambda: ccd.class_bias(ONE, 2.0, 0), "min_count must be 1 or greater, but is 0"),
        (lambda: ccd.debias(BIAS, BIAS), "scores must be floating point"),
        (lambda: ccd.debias(-ONE, BIAS), "scores must be finite"),
        (lambda: ccd.debias(ONE, torch.ones(2)), r"bias must be \[3\], .* shape \(2,\)"),
        (lambda: ccd.debias(ONE, ONE), "bias must be"),
        (lambda: ccd.debias(ONE, torch.tensor([1.0, 0.0, 1.0])), "greater than 0, but is 0.0 for class 1"),
        (lambda: ccd.debias(ONE, torch.tensor([1.0, 1.0, math.nan])), "but is nan for class 2"),
        (lambda: ccd.debias(ONE, torch.tensor([math.inf, 1.0, 1.0])), "but is inf for class 0"),
        (lambda: ccd.debias(ONE, BIAS, -0.1), "floor must be 0 or greater"),
        (lambda: ccd.refine(ONE, ONE, torch.tensor([0, 1, 2]), BIAS, 1.1), r"ratio must be in \[0, 1\], but is 1.1"),
        (lambda: ccd.refine(ONE, ONE, torch.tensor([0, 1, 2]), BIAS, -0.1), "ratio"),
        (lambda: ccd.refine(ONE, ONE, torch.tensor([0, 2]), BIAS, 0.5), r"old must be \[1, 3\], .* but is \[2, 3\]"),
        (lambda: ccd.refine(ONE, torch.ones(2, 2), torch.tensor([0, 1, 2]), BIAS, 0.5), r"old must be \[2, 2\]"),
        (lambda: ccd.refine(ONE, ONE, torch.tensor([0, 3, 2]), BIAS, 0.5), "offset decreases over image row 1"),
        (lambda: ccd.refine(ONE, ONE, torch.tensor([0, 1, 3]), BIAS, 0.5), "from 0 to 3"),
        (lambda: ccd.refine(ONE, ONE, torch.tensor([0.0, 1, 2]), BIAS, 0.5), "offset must be int64"),
        (lambda: ccd.refine(ONE, ONE.long(), torch.tensor([0, 1, 2]), BIAS, 0.5), "view_scores must be"),
        (lambda: ccd.refine(ONE, -ONE, torch.tensor([0, 1, 2]), BIAS, 0.5), "view_scores must be finite"),
        (lambda: ccd.refine(ONE * math.nan, ONE, torch.tensor([0, 1, 2]), BIAS, 0.5), "old must be finite"),
        (lambda: ccd.refine(BIAS, ONE, torch.tensor([0, 1, 2]), BIAS, 0.5), "old must be floating point"),
        (lambda: ccd.refine(ONE, ONE, torch.tensor([0, 1, 2]), torch.ones(2), 0.5), "bias must be"),
        (lambda: ccd.refine(ONE, ONE, torch.tensor([0, 1, 2]), BIAS, 0.5, -1), "floor"),
    ],
)
def test_unlawful_arguments_are_named(call, message: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=message):
        call()


def test_ratio_0_is_lawful() -> None:
    assert torch.equal(ccd.refine(ONE, ONE, torch.tensor([0, 1, 2]), 2 * BIAS, 0.0), ONE / 2)
