"""Gradient alignment and the losses against autograd, their definitions and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_matrices import matrices, permutations
from torch import Tensor
from torchmetrics.functional import kl_divergence

from clipdistill.methods import cdul

quick = settings(deadline=None, max_examples=40)
UNIT = st.floats(0, 1, width=32)
OPEN = st.floats(1e-4, 1 - 1e-4)

# gradient_alignment


def _divergence(y: Tensor, p: Tensor, head: str) -> Tensor:
    """KL(label || prediction), summed over images (and over classes, for the sigmoid head)."""
    if head == "sigmoid":
        return (y * (y / p).log() + (1 - y) * ((1 - y) / (1 - p)).log()).sum()
    q = y / y.sum(dim=1, keepdim=True)
    return (q * (q / p).log()).sum()


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
@quick
@given(pair=matrices(OPEN, np.float64, count=2), sigma=st.floats(0.1, 2), step=st.floats(0, 2))
def test_refinement_is_the_step_that_autograd_finds(pair, sigma: float, step: float, head: cdul.Head) -> None:  # noqa: ANN001
    labels, predictions = pair
    if head == "softmax":
        predictions = predictions / predictions.sum(dim=1, keepdim=True)
        predictions = predictions.clamp(cdul.EPS, 1 - cdul.EPS)
    y = labels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_divergence(y, predictions, head), y)
    psi = torch.distributions.Normal(0.5, torch.tensor(sigma, dtype=labels.dtype)).log_prob(labels).exp()
    expected = torch.sigmoid(torch.logit(labels) - step * psi * gradient)
    result = cdul.gradient_alignment(labels, predictions, sigma, step, head)
    assert torch.allclose(result, expected, rtol=1e-9, atol=1e-12)


@quick
@given(matrices(OPEN, np.float64, count=2), st.floats(0.1, 2), st.floats(0, 1))
def test_sigmoid_head_blends_the_latents(pair: tuple[Tensor, Tensor], sigma: float, share: float) -> None:
    labels, predictions = pair
    step = share * sigma * math.sqrt(2 * math.pi)
    result = cdul.gradient_alignment(labels, predictions, sigma, step)
    pull = step * torch.exp(-0.5 * ((labels - 0.5) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    blend = (1 - pull) * torch.logit(labels) + pull * torch.logit(predictions)
    assert torch.allclose(result, torch.sigmoid(blend), atol=1e-12)
    # Up to the bound on the step, a label ends between where it was and the prediction.
    assert (result >= torch.minimum(labels, predictions) - 1e-12).all()
    assert (result <= torch.maximum(labels, predictions) + 1e-12).all()


@quick
@given(matrices(OPEN, np.float64), st.floats(0.1, 2), st.floats(0, 2))
def test_agreeing_labels_stay(labels: Tensor, sigma: float, step: float) -> None:
    assert torch.allclose(cdul.gradient_alignment(labels, labels, sigma, step), labels, atol=1e-12)
    rows = labels / labels.sum(dim=1, keepdim=True)
    if bool((rows < 1 - cdul.EPS).all() and (rows > cdul.EPS).all()):
        aligned = cdul.gradient_alignment(labels, rows, sigma, step, head="softmax")
        assert torch.allclose(aligned, labels, atol=1e-9)


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
@quick
@given(pair=matrices(st.sampled_from([0.0, 1e-30, 0.3, 1.0 - 2**-24, 1.0]), count=2), sigma=st.floats(0.05, 2))
def test_labels_stay_in_0_to_1_even_at_the_ends(pair, sigma: float, head: cdul.Head) -> None:  # noqa: ANN001
    result = cdul.gradient_alignment(*pair, sigma, sigma * math.sqrt(2 * math.pi), head)
    assert result.dtype == torch.float32
    assert ((result >= 0) & (result <= 1)).all()


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
@quick
@given(pair=matrices(OPEN, np.float64, count=2), random=st.randoms(use_true_random=False))
def test_refinement_commutes_withpermutations(pair, random, head: cdul.Head) -> None:  # noqa: ANN001
    rows, columns = permutations(pair[0], random)
    moved = cdul.gradient_alignment(*(part[rows][:, columns] for part in pair), head=head)
    assert torch.allclose(moved, cdul.gradient_alignment(*pair, head=head)[rows][:, columns], atol=1e-12)


@quick
@given(matrices(st.floats(0.01, 0.5), np.float64, count=2), st.floats(0.1, 1.9))
def test_softmax_head_ignores_the_scale_of_the_predictions(pair: tuple[Tensor, Tensor], scale: float) -> None:
    labels, predictions = pair
    scaled = cdul.gradient_alignment(labels, scale * predictions, head="softmax")
    assert torch.allclose(scaled, cdul.gradient_alignment(labels, predictions, head="softmax"), atol=1e-9)


def test_psi_gates_sure_labels_only_where_sigma_is_small() -> None:
    labels, predictions = torch.tensor([[0.5, 0.02]]), torch.tensor([[0.9, 0.4]])
    wide = cdul.gradient_alignment(labels, predictions, sigma=1.0, step=1.0)
    narrow = cdul.gradient_alignment(labels, predictions, sigma=0.1, step=0.25)
    assert wide[0, 1] > 2 * labels[0, 1]
    assert narrow[0, 1] == pytest.approx(labels[0, 1].item(), abs=1e-4)
    assert narrow[0, 0] == pytest.approx(0.9, abs=0.01)


def test_a_step_of_0_leaves_the_labels() -> None:
    labels = torch.tensor([[0.5, 0.02, 0.97]])
    assert torch.allclose(cdul.gradient_alignment(labels, torch.rand(1, 3), step=0.0), labels, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0.0}, "sigma must be greater than 0, but is 0.0"),
        ({"step": -1.0}, "step must be 0 or greater"),
        ({"step": math.nan}, "step"),
        ({"head": "linear"}, "head must be one of"),
        ({"labels": torch.full((2, 3), 1.1)}, "labels must lie in"),
        ({"predictions": torch.full((2, 3), math.nan)}, "predictions must lie in"),
        ({"labels": torch.zeros(2, 1)}, "shapes differ"),
    ],
)
def test_refinement_refuses_unlawful_arguments(arguments: dict, message: str) -> None:
    half = torch.full((2, 3), 0.5)
    with pytest.raises(ValueError, match=message):
        cdul.gradient_alignment(**{"labels": half, "predictions": half, **arguments})


# losses


@quick
@given(matrices(UNIT, np.float64), matrices(st.floats(-30, 30), np.float64))
def test_bernoulli_kl_equals_its_definition(labels: Tensor, logits: Tensor) -> None:
    shape = [min(sides) for sides in zip(labels.shape, logits.shape, strict=True)]
    labels, logits = labels[: shape[0], : shape[1]], logits[: shape[0], : shape[1]]
    y, p, not_p = labels.numpy(), torch.sigmoid(logits).numpy(), torch.sigmoid(-logits).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(y > 0, y * np.log(y / p), 0) + np.where(y < 1, (1 - y) * np.log((1 - y) / not_p), 0)
    assert cdul.bernoulli_kl(labels, logits).item() == pytest.approx(terms.mean(), rel=1e-9, abs=1e-9)


@quick
@given(matrices(st.floats(-8, 8, width=32)))
def test_bernoulli_kl_vanishes_where_the_student_agrees(logits: Tensor) -> None:
    assert cdul.bernoulli_kl(torch.sigmoid(logits), logits).item() == pytest.approx(0, abs=1e-6)


@quick
@given(matrices(UNIT), st.floats(-200, 200))
def test_bernoulli_kl_has_the_gradient_of_binary_cross_entropy(labels: Tensor, value: float) -> None:
    logits = torch.full_like(labels, value).requires_grad_()
    (gradient,) = torch.autograd.grad(cdul.bernoulli_kl(labels, logits), logits)
    assert torch.allclose(gradient, (torch.sigmoid(logits) - labels) / labels.numel(), atol=1e-6)


@quick
@given(matrices(st.floats(2**-7, 1, width=32)), st.integers(0, 2**31))
def test_categorical_kl_is_the_divergence_of_the_rows_scaled_to_1(labels: Tensor, seed: int) -> None:
    logits = torch.randn(labels.shape, generator=torch.Generator().manual_seed(seed))
    reference = kl_divergence(torch.softmax(logits, dim=1), labels)
    assert cdul.categorical_kl(labels, logits).item() == pytest.approx(reference.item(), rel=1e-4, abs=1e-6)


def test_losses_are_finite_at_the_ends() -> None:
    labels, logits = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[200.0, -200.0, 0.0]]).requires_grad_()
    for loss in (cdul.bernoulli_kl(labels, logits), cdul.categorical_kl(labels, logits)):
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [cdul.bernoulli_kl, cdul.categorical_kl])
def test_losses_widen_half_precision_and_refuse_other_shapes(loss) -> None:  # noqa: ANN001
    assert loss(torch.rand(2, 3), torch.randn(2, 3).bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"labels \(2, 3\), logits \(2, 1\)"):
        loss(torch.rand(2, 3), torch.randn(2, 1))
