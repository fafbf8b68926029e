"""MKT's scores and losses against loops, autograd, and what the released code computes in their place."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from random_matrices import permutations
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clipdistill.methods import mkt

quick = settings(deadline=None, max_examples=40)


def features(images: int, patches: int, labels: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random embeddings float64 of images, their patches and labels, none of unit norm."""
    source = torch.Generator().manual_seed(seed)
    shapes = ((images, width), (images, patches, width), (labels, width))
    return tuple(torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes)  # type: ignore[return-value]


# two_stream


def released_scores(cls: Tensor, patches: Tensor, text: Tensor, k: int) -> np.ndarray:
    """The released forward pass, dot product by dot product."""
    whole, best = np.zeros((len(cls), len(text))), np.zeros((len(cls), len(text)))
    for b, (image, cells) in enumerate(zip(cls.numpy(), patches.numpy(), strict=True)):
        for label, row in enumerate(text.numpy()):
            whole[b, label] = sum(x * y for x, y in zip(image, row, strict=True))
            dots = sorted((sum(x * y for x, y in zip(cell, row, strict=True)) for cell in cells), reverse=True)
            best[b, label] = sum(dots[:k]) / k
        whole[b] /= np.sqrt((whole[b] ** 2).sum())
        best[b] /= np.sqrt((best[b] ** 2).sum())
    return (best + whole) / 2


@pytest.mark.parametrize(("labels", "k"), [(1, 1), (5, 3), (9, 7)])
def test_label_norm_is_the_released_score(labels: int, k: int) -> None:
    cls, patches, text = features(3, 7, labels, 6)
    expected = torch.from_numpy(released_scores(cls, patches, text, k))
    torch.testing.assert_close(mkt.two_stream(cls, patches, text, k, "label"), expected, rtol=0, atol=1e-12)
    single = mkt.two_stream(cls.float(), patches.float(), text.float(), k, "label")
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-6)


def test_two_streams_by_hand() -> None:
    cls = torch.tensor([[3.0, 4.0]])
    patches = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [-5.0, 0.0]]])
    text = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    # Cosines: image 0.6 and 0.8; of the patches 1, 0, -1 and 0, 1, 0.
    torch.testing.assert_close(mkt.two_stream(cls, patches, text, 1), torch.tensor([[0.8, 0.9]]))
    torch.testing.assert_close(mkt.two_stream(cls, patches, text, 2), torch.tensor([[0.55, 0.65]]))
    torch.testing.assert_close(mkt.two_stream(cls, patches, text, 2, local=0.25), torch.tensor([[0.575, 0.725]]))
    # Dot products: image 3 and 8; the best patch 2 and 2.
    expected = (torch.tensor([[3.0, 8.0]]) / 73**0.5 + torch.tensor([[2.0, 2.0]]) / 8**0.5) / 2
    torch.testing.assert_close(mkt.two_stream(cls, patches, text, 1, "label"), expected)


@pytest.mark.parametrize("norm", ["cosine", "label"])
def test_more_patches_than_there_are_means_all(norm: mkt.Norm) -> None:
    cls, patches, text = features(2, 4, 5, 3)
    every = mkt.two_stream(cls, patches, text, 4, norm)
    assert torch.equal(mkt.two_stream(cls, patches, text, 99, norm), every)
    assert not torch.equal(mkt.two_stream(cls, patches, text, 3, norm), every)


@pytest.mark.parametrize("norm", ["cosine", "label"])
def test_shares_0_and_1_are_the_streams(norm: mkt.Norm) -> None:
    parts = features(2, 4, 5, 3)
    whole, best = mkt.streams(*parts, 2, norm)
    assert torch.equal(mkt.two_stream(*parts, 2, norm, local=0.0), whole)
    assert torch.equal(mkt.two_stream(*parts, 2, norm, local=1.0), best)
    torch.testing.assert_close(mkt.two_stream(*parts, 2, norm), (whole + best) / 2)


@quick
@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 5))
def test_appended_labels_leave_cosines_and_change_scores_of_the_label_norm(seed: int, more: int, k: int) -> None:
    cls, patches, text = features(2, 5, 4 + more, 8, seed)
    cosine, label = (
        (mkt.two_stream(cls, patches, text[:4], k, norm), mkt.two_stream(cls, patches, text, k, norm)[:, :4])
        for norm in ("cosine", "label")
    )
    torch.testing.assert_close(*cosine, rtol=0, atol=1e-12)
    # Each stream is divided by a greater norm.
    short, long = (mkt.streams(cls, patches, text[:count], k, "label") for count in (4, 4 + more))
    assert all(bool((after[:, :4].abs() < before.abs()).all()) for before, after in zip(short, long, strict=True))
    assert (label[0] - label[1]).abs().max() > 1e-6


@quick
@given(st.integers(0, 99), st.randoms(use_true_random=False), st.sampled_from(["cosine", "label"]))
def test_scores_follow_their_labels_and_no_order_of_patches(seed: int, random, norm: mkt.Norm) -> None:  # noqa: ANN001
    cls, patches, text = features(2, 5, 4, 3, seed)
    cells, labels = permutations(patches[0] @ text.T, random)
    expected = mkt.two_stream(cls, patches, text, 3, norm)[:, labels]
    torch.testing.assert_close(mkt.two_stream(cls, patches[:, cells], text[labels], 3, norm), expected)


@quick
@given(st.integers(0, 99), st.floats(0.1, 10), st.integers(1, 6), st.floats(0, 1))
def test_cosines_have_no_scale_and_lie_within_1(seed: int, factor: float, k: int, local: float) -> None:
    cls, patches, text = features(2, 5, 4, 3, seed)
    scores = mkt.two_stream(cls, patches, text, k, local=local)
    assert scores.abs().max() <= 1 + 1e-9
    scaled = mkt.two_stream(factor * cls, factor * patches, factor * text, k, local=local)
    torch.testing.assert_close(scaled, scores)


def test_each_label_draws_its_own_patches_alone() -> None:
    cls, patches, text = features(1, 6, 3, 4)
    patches.requires_grad_()
    for label in range(3):
        (gradient,) = torch.autograd.grad(mkt.two_stream(cls, patches, text, 2)[0, label], patches)
        moved = gradient[0].abs().sum(dim=1) > 0
        best = torch.cosine_similarity(patches[0], text[label], dim=1).topk(2).indices
        assert sorted(moved.nonzero().flatten().tolist()) == sorted(best.tolist())


def test_streams_are_cosines_by_default() -> None:
    parts = features(2, 4, 5, 3)
    for own, cosine in zip(mkt.streams(*parts, 2), mkt.streams(*parts, 2, "cosine"), strict=True):
        assert torch.equal(own, cosine)


def test_half_precision_is_scored_in_float32() -> None:
    parts = [part.half() for part in features(2, 4, 5, 3)]
    scores = mkt.two_stream(*parts, 2)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, mkt.two_stream(*(part.float() for part in parts), 2))


# The ranking losses: what they are compared with


def pairs_of(scores: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The hinge of every pair, [B, S absent, S present]; 0 where the two are not that."""
    mask = (labels == 0)[:, :, None] & (labels == 1)[:, None, :]
    return F.relu(margin + scores[:, :, None] - scores[:, None, :]) * mask


def pairwise_rank(scores: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """The hinge's mean over active pairs, then over the images that have one."""
    hinge = pairs_of(scores, labels, margin)
    active = (hinge > 0).sum(dim=(1, 2))
    each = hinge.sum(dim=(1, 2)) / active.clamp(min=1)
    return each.sum() / (active > 0).sum().clamp(min=1)


def released_rank(scores: Tensor, labels: Tensor) -> Tensor:
    """The released loss, line by line; labels 1, -1 and, for unknown, 0."""
    used = (labels.abs().sum(dim=0) > 0).nonzero().view(-1)
    some_labels, some = labels[:, used], scores[:, used]
    positive, negative = some_labels.clamp(0, 1), (-some_labels).clamp(0, 1)
    mask = positive.unsqueeze(1) * negative.unsqueeze(-1)
    all_pairs = 1 + (some * negative).unsqueeze(-1) - (some * positive).unsqueeze(1)
    hinge = (mask * all_pairs).clamp(min=0)
    violations = torch.sign(hinge).sum(1).sum(1)
    return (hinge.sum(1).sum(1) / (violations + 1e-8)).mean()


def double_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over images of log(1 + sum over pairs of y_p (1 - y_n) exp(s_n - s_p)), unknown labels left out."""
    each = []
    for row, truth in zip(logits, labels.to(logits.dtype), strict=True):
        total = 0 * row.sum()
        for p in range(len(row)):
            for n in range(len(row)):
                if truth[p] >= 0 and truth[n] >= 0:
                    total = total + truth[p] * (1 - truth[n]) * torch.exp(row[n] - row[p])
        each.append(torch.log1p(total))
    return torch.stack(each).mean()


def with_gradient(loss: Callable[..., Tensor], scores: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    """A loss and its gradient at the scores."""
    leaf = scores.detach().clone().requires_grad_()
    value = loss(leaf, *arguments)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def drawn(images: int, labels: int, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random scores float64 and labels -1, 0, 1."""
    source = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(images, labels, generator=source, dtype=torch.float64)
    return scores, torch.randint(-1, 2, (images, labels), generator=source)


@st.composite
def problems(draw: st.DrawFn, *values: float) -> tuple[Tensor, Tensor]:
    """Scores on a grid of eighths, so that many pairs are exactly a margin apart, and labels of these values."""
    shape = draw(arrays.array_shapes(min_dims=2, max_dims=2, max_side=7))
    scores = draw(arrays.arrays(np.float64, shape, elements=st.integers(-24, 24).map(lambda step: step / 8)))
    labels = draw(arrays.arrays(np.float64, shape, elements=st.sampled_from(values)))
    return torch.from_numpy(scores), torch.from_numpy(labels)


# rank_loss


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("margin", [1.0, 0.1, 0.0])
def test_rank_loss_and_gradient_equal_the_pairwise_hinge(scale: float, margin: float) -> None:
    scores, labels = drawn(8, 60, scale)
    expected = with_gradient(pairwise_rank, scores, labels, margin)
    torch.testing.assert_close(with_gradient(mkt.rank_loss, scores, labels, margin), expected, rtol=1e-12, atol=1e-12)
    single = with_gradient(mkt.rank_loss, scores.float(), labels, margin)
    assert single[0].dtype == torch.float32
    torch.testing.assert_close(single[0].double(), expected[0], rtol=1e-5, atol=1e-5)
    # Rounding to float32 may move a pair across the margin: one of hundreds.
    torch.testing.assert_close(single[1].double(), expected[1], rtol=0.02, atol=1e-4)


@quick
@given(problems(-1, 0, 1), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_rank_loss_equals_the_pairwise_hinge_also_at_the_margin(problem: tuple[Tensor, Tensor], margin: float) -> None:
    scores, labels = problem
    expected = with_gradient(pairwise_rank, scores, labels, margin)
    torch.testing.assert_close(with_gradient(mkt.rank_loss, scores, labels, margin), expected)
    single = with_gradient(mkt.rank_loss, scores.float(), labels, margin)
    torch.testing.assert_close(single, tuple(part.float() for part in expected), rtol=1e-5, atol=1e-5)


def test_rank_loss_by_hand() -> None:
    # Active: 0.5 against 0 and against -0.25 (hinges 0.5 and 0.25), 1.25 against none of them. -0.5 is just
    # apart from 0.5, which is not active.
    scores = torch.tensor([[0.5, 1.25, 0.0, -0.25, 9.0, -0.5]], dtype=torch.float64)
    labels = torch.tensor([[1, 1, 0, 0, -1, 0]])
    value, gradient = with_gradient(mkt.rank_loss, scores, labels)
    assert value == pytest.approx(0.375)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 0.0, 0.5, 0.5, 0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("margin", [1.0, 0.5])
def test_below_half_the_margin_the_hinge_is_linear(margin: float) -> None:
    scores, labels = drawn(6, 40, 1.0)
    scores = margin / 2 * (2 * torch.sigmoid(scores) - 1)
    present, absent = labels == 1, labels == 0
    means = [(scores * part).sum(dim=1) / part.sum(dim=1) for part in (absent, present)]
    torch.testing.assert_close(mkt.rank_loss(scores, labels, margin), (margin + means[0] - means[1]).mean())


def test_no_active_pair_is_0_without_a_gradient() -> None:
    scores = torch.tensor([[5.0, 1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    labels = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0], [-1, -1, -1]])
    value, gradient = with_gradient(mkt.rank_loss, scores, labels)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(4, 3))
    # They do not water down an image that has one.
    more = torch.cat([scores, torch.tensor([[1.0, 1.5, 0.0]])]), torch.cat([labels, torch.tensor([[1, 0, -1]])])
    assert mkt.rank_loss(*more) == 1.5


def test_an_image_with_one_active_pair_counts_in_the_mean_like_any_other() -> None:
    # Hinges 1.5, 1.25 and, of two pairs, 1 and 0.5.
    scores = torch.tensor([[0.0, 0.5, 9.0], [0.0, 0.25, 9.0], [0.0, 0.0, -0.5]])
    labels = torch.tensor([[1, 0, -1], [1, 0, -1], [1, 0, 0]])
    assert mkt.rank_loss(scores[:2], labels[:2]) == (1.5 + 1.25) / 2
    assert mkt.rank_loss(scores, labels) == pytest.approx((1.5 + 1.25 + 0.75) / 3)


def test_pairs_that_are_just_apart_are_active_for_both_labels_or_for_neither() -> None:
    source = torch.Generator().manual_seed(0)
    present = torch.randn(500, 1, generator=source) / 5
    scores, labels = torch.cat([present, present - 1], dim=1), torch.tensor([[1, 0]]).expand(500, 2)
    for row in range(500):
        value, gradient = with_gradient(mkt.rank_loss, scores[row : row + 1], labels[row : row + 1])
        assert value.abs() <= 1e-6
        assert gradient.sum() == 0


@quick
@given(problems(-1, 0, 1))
def test_the_gradient_of_an_image_sums_to_0_and_unknown_labels_have_none(problem: tuple[Tensor, Tensor]) -> None:
    for loss in (mkt.rank_loss, mkt.log_sum_exp_loss):
        _, gradient = with_gradient(loss, *problem)
        torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(len(gradient), dtype=torch.float64))
        assert bool((gradient[problem[1] < 0] == 0).all())
        assert bool((gradient[problem[1] == 1] <= 0).all())
        assert bool((gradient[problem[1] == 0] >= 0).all())


def test_soft_labels_of_the_hinge_are_present_from_a_half_on() -> None:
    scores, _ = drawn(3, 4, 1.0)
    soft = torch.tensor([[0.5, 0.49, -0.1, 1.0]]).expand(3, 4)
    assert mkt.rank_loss(scores, soft) == mkt.rank_loss(scores, torch.tensor([[1, 0, -1, 1]]).expand(3, 4))


@pytest.mark.parametrize("loss", [mkt.rank_loss, mkt.log_sum_exp_loss])
def test_half_precision_is_ranked_in_float32(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    scores, labels = drawn(4, 30, 3.0)
    for dtype in (torch.float16, torch.bfloat16):
        value = loss(scores.to(dtype), labels)
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(scores.to(dtype).float(), labels))


@pytest.mark.parametrize("loss", [mkt.rank_loss, mkt.log_sum_exp_loss])
def test_no_image_is_0(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert loss(torch.zeros(0, 3), torch.zeros(0, 3)) == 0


# log_sum_exp_loss


def test_soft_labels_count_in_the_precision_of_the_logits() -> None:
    logits, _ = drawn(3, 4, 1.0)
    soft = torch.tensor([[0.3, 0.7, 0.9, -1.0]]).expand(3, 4)
    expected = mkt.log_sum_exp_loss(logits, soft.double())
    torch.testing.assert_close(mkt.log_sum_exp_loss(logits, soft), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 5.0])
def test_log_sum_exp_equals_the_double_sum(scale: float) -> None:
    logits, labels = drawn(5, 9, scale)
    expected = with_gradient(double_sum, logits, labels)
    torch.testing.assert_close(with_gradient(mkt.log_sum_exp_loss, logits, labels), expected)
    single = with_gradient(mkt.log_sum_exp_loss, logits.float(), labels)
    torch.testing.assert_close(single, tuple(part.float() for part in expected), rtol=1e-4, atol=1e-6)


def test_log_sum_exp_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0, 50.0], [1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    labels = torch.tensor([[1, 0, 0, -1], [0, 0, 0, -1]])
    # The second image has nothing to rank, and is counted in the mean.
    expected = np.log(1 + np.exp(-2) + np.exp(-1)) / 2
    assert mkt.log_sum_exp_loss(logits, labels).item() == pytest.approx(expected)


@quick
@given(problems(-1, 0, 0.25, 0.5, 1))
def test_soft_labels_count_by_their_share(problem: tuple[Tensor, Tensor]) -> None:
    # A soft label makes a pair with itself: y (1 - y) exp(0).
    expected = with_gradient(double_sum, *problem)
    torch.testing.assert_close(with_gradient(mkt.log_sum_exp_loss, *problem), expected)


@quick
@pytest.mark.parametrize("loss", [mkt.rank_loss, mkt.log_sum_exp_loss])
@given(problems(-1, 0, 0.5, 1), st.integers(-80, 80), st.randoms(use_true_random=False))
def test_a_loss_knows_neither_places_nor_a_shift_of_an_image(
    loss: Callable[[Tensor, Tensor], Tensor],
    problem: tuple[Tensor, Tensor],
    steps: int,
    random,  # noqa: ANN001
) -> None:
    scores, labels = problem
    value = loss(scores, labels)
    assert value >= 0
    rows, columns = permutations(scores, random)
    torch.testing.assert_close(loss(scores[rows][:, columns], labels[rows][:, columns]), value)
    shift = torch.zeros(len(scores), 1, dtype=torch.float64)
    shift[0] = steps / 8
    torch.testing.assert_close(loss(scores + shift, labels), value)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_nothing_to_rank_and_huge_logits_have_a_finite_gradient(size: float) -> None:
    logits = size * torch.tensor(
        [[1.0, -1.0, 0.5], [-1.0, 1.0, 0.5], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
    )
    labels = torch.tensor([[1, 0, 0], [1, 0, -1], [1, 1, -1], [0, 0, -1], [-1, -1, -1]])
    for rows in (slice(None), slice(2, None), slice(4, None)):
        value, gradient = with_gradient(mkt.log_sum_exp_loss, logits[rows], labels[rows])
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
    assert (value, gradient.abs().sum()) == (0, 0)
    _, gradient = with_gradient(mkt.log_sum_exp_loss, logits, labels)
    assert bool((gradient[2:] == 0).all())
    if size > 1:
        # The pair that is apart the wrong way draws with all its weight, the ones the right way with none.
        torch.testing.assert_close(gradient[:2], torch.tensor([[0.0, 0.0, 0.0], [-0.2, 0.2, 0.0]]))


# distillation


def test_distillation_by_hand_draws_the_student_alone() -> None:
    student = torch.tensor([[1.0, -2.0], [0.0, 4.0]], requires_grad=True)
    teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = mkt.distillation(student, teacher)
    assert loss == (1 + 2 + 0 + 3) / 4
    loss.backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-0.25, -0.25], [0.0, 0.25]]))
    assert teacher.grad is None


@quick
@given(st.integers(0, 99))
def test_distillation_is_the_mean_distance_and_0_for_equals(seed: int) -> None:
    student, _, teacher = features(3, 1, 3, 5, seed)
    assert mkt.distillation(student, teacher).item() == pytest.approx(np.abs((student - teacher).numpy()).mean())
    assert mkt.distillation(student, student) == 0
    assert mkt.distillation(student.half(), teacher.half()).dtype == torch.float32


# What the released code does in their place


def test_the_released_hinge_never_switches_off_and_ours_does() -> None:
    cls, patches, text = features(4, 9, 925, 16)
    scores = mkt.two_stream(cls, patches, text, 3, "label")
    assert scores.norm(dim=1).max() <= 1
    # Ranked without a fault: every present label above every absent one.
    labels = torch.where(scores >= scores.topk(5, dim=1).values[:, 4:], 1, -1)
    value, gradient = with_gradient(released_rank, scores, labels)
    means = [scores[labels == sign].reshape(4, -1).mean(dim=1) for sign in (-1, 1)]
    torch.testing.assert_close(value, (1 + means[0] - means[1]).mean())
    assert value > 0.8
    # Two values an image, whatever the scores.
    for row, truth in zip(gradient, labels, strict=True):
        torch.testing.assert_close(row[truth == 1], torch.full((5,), -1 / 5 / 4, dtype=torch.float64))
        torch.testing.assert_close(row[truth == -1], torch.full((920,), 1 / 920 / 4, dtype=torch.float64))
    ours = with_gradient(mkt.rank_loss, scores, labels.clamp(min=0))
    torch.testing.assert_close(ours, (value, gradient))
    # The default loss, on scores whose pairs are as far apart as 0.2 in cosine at the usual temperature.
    apart = 20.0 * (labels == 1)
    value, gradient = with_gradient(mkt.log_sum_exp_loss, apart, labels.clamp(min=0))
    assert value < 1e-4
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("scale", [0.03, 1.0, 30.0])
def test_rank_loss_is_the_released_one_where_every_image_has_an_active_pair(scale: float) -> None:
    scores, labels = drawn(6, 20, scale, seed=1)
    released = torch.where(labels == 0, -1, labels.clamp(min=0))
    assert bool((pairs_of(scores, labels, 1.0).amax(dim=(1, 2)) > 0).all())
    expected = with_gradient(released_rank, scores, released)
    torch.testing.assert_close(with_gradient(mkt.rank_loss, scores, labels), expected, rtol=1e-6, atol=1e-7)


def test_the_released_mean_is_watered_down_by_images_without_an_active_pair() -> None:
    scores, labels = torch.tensor([[3.0, 0.0], [0.0, 0.5]]), torch.tensor([[1, -1], [1, -1]])
    assert released_rank(scores, labels) == 0.75
    assert mkt.rank_loss(scores, labels.clamp(min=0)) == 1.5


class Largest(TorchDispatchMode):
    """Notes the number of entries of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, tuple | list) else (made,):
            if isinstance(part, Tensor):
                self.entries = max(self.entries, part.numel())
        return made


def test_the_released_loss_makes_tensors_of_pairs_and_ours_of_scores() -> None:
    scores, labels = drawn(4, 100, 1.0)
    entries = []
    for loss, truth in (
        (released_rank, torch.where(labels == 0, -1, labels.clamp(min=0))),
        (mkt.rank_loss, labels),
        (mkt.log_sum_exp_loss, labels),
    ):
        with Largest() as largest:
            with_gradient(loss, scores, truth)
        entries.append(largest.entries)
    assert entries == [4 * 100 * 100, 4 * 100, 4 * 100]


# Unlawful arguments

CLS, PATCHES, TEXT, ROWS = torch.ones(2, 3), torch.ones(2, 4, 3), torch.ones(5, 3), torch.ones(2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mkt.two_stream(CLS[0], PATCHES, TEXT, 1), r"cls must be floating point \[B, D\]"),
        (lambda: mkt.two_stream(CLS, CLS, TEXT, 1), r"patches must be floating point \[B, M, D\]"),
        (lambda: mkt.two_stream(CLS, PATCHES[:, :0], TEXT, 1), "patches must be"),
        (lambda: mkt.two_stream(CLS, PATCHES, TEXT.long(), 1), "text must be floating point"),
        (lambda: mkt.two_stream(CLS[:1], PATCHES, TEXT, 1), r"do not fit: \(1, 3\), \(2, 4, 3\), \(5, 3\)"),
        (lambda: mkt.two_stream(CLS, PATCHES, TEXT[:, :2], 1), "do not fit"),
        (lambda: mkt.two_stream(CLS, PATCHES, TEXT[:0], 1), "do not fit"),
        (lambda: mkt.two_stream(CLS, PATCHES, TEXT, 0), "k must be at least 1, but is 0"),
        (lambda: mkt.two_stream(CLS, PATCHES, TEXT, 1, "unit"), "cosine or label, but is 'unit'"),  # type: ignore[arg-type]
        (lambda: mkt.two_stream(CLS, PATCHES, TEXT, 1, local=1.1), r"local must be in \[0, 1\]"),
        (lambda: mkt.two_stream(CLS, PATCHES, TEXT, 1, local=float("nan")), "local"),
        (lambda: mkt.rank_loss(ROWS, ROWS[:1]), r"shapes differ: scores \(2, 4\), labels \(1, 4\)"),
        (lambda: mkt.rank_loss(ROWS[0], ROWS[0]), "scores must be"),
        (lambda: mkt.rank_loss(ROWS, ROWS, -0.1), "margin must be 0 or greater"),
        (lambda: mkt.rank_loss(ROWS, ROWS, float("inf")), "margin"),
        (lambda: mkt.log_sum_exp_loss(ROWS, ROWS[:, :3]), "shapes differ: logits"),
        (lambda: mkt.log_sum_exp_loss(ROWS.long(), ROWS), "logits must be floating point"),
        (lambda: mkt.distillation(CLS, TEXT), "shapes differ: cls"),
        (lambda: mkt.distillation(PATCHES, PATCHES), "cls must be"),
    ],
)
def test_unlawful_arguments_are_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
