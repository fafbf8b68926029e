"""CCD's losses and stopping rule against autograd, their definitions and the released rule."""

import doctest
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_matrices import matrices
from torch import Tensor

from clipdistill.evaluation.metrics import mean_average_precision
from clipdistill.methods import ccd

quick = settings(deadline=None, max_examples=40)
UNIT = st.floats(0, 1, width=32)


def test_docstring_examples() -> None:
    result = doctest.testmod(ccd)
    assert result.attempted > 0
    assert result.failed == 0


# boost_positive and the losses


def test_boost_multiplies_the_positive_part_and_its_gradient() -> None:
    cam = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
    boosted = ccd.boost_positive(cam, 3.0)
    assert boosted.tolist() == [-2, 0, 6]
    (gradient,) = torch.autograd.grad(boosted.sum(), cam)
    assert gradient.tolist() == [1, 1, 3]


@quick
@given(matrices(st.floats(-100, 100, width=32)), st.floats(0.1, 10))
def test_boost_by_1_is_the_identity_and_by_less_it_damps(cam: Tensor, alpha: float) -> None:
    assert torch.equal(ccd.boost_positive(cam, 1.0), cam)
    torch.testing.assert_close(ccd.boost_positive(cam, alpha), alpha * cam.relu() - (-cam).relu())


def test_label_loss_by_hand() -> None:
    labels, logits = torch.tensor([[1.0, 0.0], [0.25, 0.5]]), torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    p = torch.sigmoid(logits)
    entries = -(labels * p.log() + (1 - labels) * (1 - p).log())
    torch.testing.assert_close(ccd.label_loss(labels, logits), entries.sum() / 4)
    weighted = (entries[0].sum() + 0.1 * entries[1].sum()) / 4
    torch.testing.assert_close(ccd.label_loss(labels, logits, torch.tensor([1.0, 0.1])), weighted)
    assert ccd.label_loss(labels, logits, torch.zeros(2)) == 0


@quick
@given(matrices(UNIT, count=2))
def test_the_gradient_of_the_label_loss_is_prediction_minus_label(pair: tuple[Tensor, Tensor]) -> None:
    labels, logits = pair[0], (8 * pair[1] - 4).requires_grad_()
    weight = torch.linspace(0.1, 1, len(labels))
    (gradient,) = torch.autograd.grad(ccd.label_loss(labels, logits, weight), logits)
    expected = weight[:, None] * (torch.sigmoid(logits.detach()) - labels) / labels.numel()
    torch.testing.assert_close(gradient, expected)


def test_consistency_draws_the_jittered_view_alone() -> None:
    jittered = torch.tensor([[1.0, -2.0]], requires_grad=True)
    plain = torch.tensor([[0.5, 4.0]], requires_grad=True)
    loss = ccd.consistency_loss(jittered, plain)
    p, q = torch.sigmoid(jittered.detach()), torch.sigmoid(plain.detach())
    torch.testing.assert_close(loss.detach(), -(q * p.log() + (1 - q) * (1 - p).log()).mean())
    loss.backward()
    torch.testing.assert_close(jittered.grad, (p - q) / 2)
    assert plain.grad is None


def test_losses_of_half_precision_are_float32() -> None:
    logits = torch.tensor([[20.0, -20.0]])
    half = logits.half()
    assert ccd.label_loss(torch.tensor([[0.0, 0.0]]).half(), half).dtype == torch.float32
    torch.testing.assert_close(ccd.consistency_loss(half, half), ccd.consistency_loss(logits, logits))
    assert ccd.consistency_loss(half, half).dtype == torch.float32
    weighted = ccd.label_loss(torch.zeros(1, 2), logits, torch.ones(1).half())
    torch.testing.assert_close(weighted, F.binary_cross_entropy_with_logits(logits, torch.zeros(1, 2)))


# curvature_epoch

# Train mAP of a run of the released code on VOC 2007; its rule saved epoch 6.
TRAIN_MAP = [28.5, 73.0, 82.7, 86.0, 87.3, 88.2, 89.5, 90.4, 90.6, 91.3]


def released_stop(train_map: Sequence[float]) -> int | None:
    """The released rule, epoch by epoch; None where it never saves a model."""
    before, last = 100.0, 100.0
    for epoch, value in enumerate(train_map):
        gain = 100.0 if epoch == 0 else value - train_map[epoch - 1]
        before, last = last, gain
        if last - before > 0:
            return epoch
    return None


def test_the_rule_gives_the_epoch_of_a_known_run() -> None:
    assert ccd.curvature_epoch(TRAIN_MAP) == released_stop(TRAIN_MAP) == 6


@quick
@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_the_rule_is_the_released_one_or_the_last_epoch(train_map: list[float]) -> None:
    released = released_stop(train_map)
    assert ccd.curvature_epoch(train_map) == (len(train_map) - 1 if released is None else released)


@quick
@given(st.lists(st.integers(0, 8), min_size=1, max_size=12))
def test_falling_gains_leave_the_release_without_a_model_and_give_the_last_epoch(gains: list[int]) -> None:
    concave = np.cumsum(sorted(gains, reverse=True)).tolist()
    assert released_stop(concave) is None
    assert ccd.curvature_epoch(concave) == len(concave) - 1


def test_an_undefined_map_never_triggers() -> None:
    nan = math.nan
    assert ccd.curvature_epoch([nan] * 4) == 3
    assert ccd.curvature_epoch([10.0, nan, 50.0, 90.0]) == 3
    assert ccd.curvature_epoch([nan, 10.0, 20.0, 40.0, 50.0]) == 3


def test_labels_that_the_clamp_does_not_saturate_leave_the_released_rule_without_positives() -> None:
    bias = torch.tensor([1.0, 1.0])
    clamped = ccd.debias(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), bias).clamp(0, 1)
    value, _ = mean_average_precision(torch.rand(2, 2), (clamped == 1).long())
    assert math.isnan(value)
    assert ccd.curvature_epoch([value] * 3) == 2


def test_the_bounds_of_the_map_are_lawful() -> None:
    assert ccd.curvature_epoch([0.0, 100.0]) == 1
    assert ccd.curvature_epoch([50.0]) == 0


# Unlawful arguments

ONE, ROW = torch.ones(2, 3), torch.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ccd.boost_positive(ONE, 0.0), "alpha must be greater than 0"),
        (lambda: ccd.boost_positive(ONE, math.inf), "alpha"),
        (lambda: ccd.label_loss(ONE, ROW), r"shapes differ: labels \(2, 3\), logits \(3,\)"),
        (lambda: ccd.label_loss(ONE, ONE, ROW), r"weight must be \[B\] .* but is \[3\] for \[2, 3\]"),
        (lambda: ccd.label_loss(ONE, ONE, ONE), "weight must be"),
        (lambda: ccd.label_loss(ROW, ROW, ROW), "weight must be"),
        (lambda: ccd.consistency_loss(ONE, ROW), "shapes differ: jittered_logits"),
        (lambda: ccd.curvature_epoch([]), "at least one epoch"),
        (lambda: ccd.curvature_epoch([50.0, 100.5]), r"\[0, 100\], but is 100.5 in epoch 1"),
        (lambda: ccd.curvature_epoch([-0.5]), "train_map"),
        (lambda: ccd.curvature_epoch([math.inf]), "train_map"),
    ],
)
def test_unlawful_arguments_are_named(call, message: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=message):
        call()
