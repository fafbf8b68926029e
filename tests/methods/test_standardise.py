"""Standardisation against scipy's z-scores."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import zscore
from torch import Tensor

from clipdistill.methods import standardise as module
from clipdistill.methods.standardise import standardise

quick = settings(deadline=None, max_examples=40)
SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=8)
# Multiples of 1/16: sums are exact, so that a constant line is exactly constant in the reference too.
SCORES = arrays.arrays(np.float32, SHAPES, elements=st.integers(0, 16).map(lambda value: value / 16))
MODES = ("class", "image", "both")


def reference(scores: np.ndarray, mode: str) -> np.ndarray:
    z = scores.astype(np.float64)
    for axis in {"class": (0,), "image": (1,), "both": (0, 1)}[mode]:
        constant = np.ptp(z, axis=axis, keepdims=True) < 1e-12
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(constant, 0.0, zscore(np.where(constant, 0.0, z), axis=axis))
    return 1 / (1 + np.exp(-z))


def test_docstring_examples() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@quick
@given(SCORES, st.sampled_from(MODES))
def test_equals_the_sigmoid_of_the_z_scores(scores: np.ndarray, mode: module.Mode) -> None:
    result = standardise(torch.from_numpy(scores), mode)
    assert result.dtype == torch.float32
    assert ((result > 0) & (result < 1)).all()
    np.testing.assert_allclose(result, reference(scores, mode), atol=1e-6)


@quick
@given(SCORES, st.sampled_from(MODES), st.randoms(use_true_random=False))
def test_commutes_with_permutations(scores: np.ndarray, mode: module.Mode, random) -> None:  # noqa: ANN001
    values = torch.from_numpy(scores)
    rows, columns = list(range(values.shape[0])), list(range(values.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    moved = standardise(values[rows][:, columns], mode)
    assert torch.allclose(moved, standardise(values, mode)[rows][:, columns], atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-30, 1e30])
@pytest.mark.parametrize("mode", MODES)
def test_a_constant_matrix_gives_one_half(value: float, mode: module.Mode) -> None:
    assert (standardise(torch.full((7, 5), value), mode) == 0.5).all()


def test_two_images_leave_no_order_within_a_row() -> None:
    # Every z-score of a class is then 1 or -1, up to rounding, which a second z-score must not blow up.
    brighter = torch.rand(1, 9, generator=torch.Generator().manual_seed(0))
    assert (standardise(torch.cat([brighter, brighter / 3]), "both") == 0.5).all()


def test_removes_what_a_class_and_an_image_add() -> None:
    base = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    biased = 2 * base + torch.arange(6.0)
    assert torch.allclose(standardise(biased, "class"), standardise(base, "class"), atol=1e-5)
    assert torch.allclose(standardise(biased, "both"), standardise(base, "both"), atol=1e-5)
    brighter = base + torch.arange(50.0)[:, None]
    assert torch.allclose(standardise(brighter, "image"), standardise(base, "image"), atol=1e-5)


def test_keeps_the_order_of_a_rare_class_that_stands_out() -> None:
    scores = torch.zeros(200, 1)
    scores[:2, 0] = torch.tensor([0.8, 0.9])
    result = standardise(scores, "class")
    assert result[1, 0] > result[0, 0] > 0.9999
    assert torch.logit(result[1, 0].double()) > 9


def test_stays_open_where_a_z_score_is_huge() -> None:
    scores = torch.zeros(100_000, 2)
    scores[0] = torch.tensor([1.0, -1.0])
    result = standardise(scores, "class")
    assert 0 < result[0, 1] < 1e-20
    assert 1 - 1e-7 < result[0, 0] < 1


def test_none_returns_the_scores_themselves() -> None:
    scores = torch.rand(3, 2)
    assert standardise(scores, "none") is scores


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (1, 4), (4, 1)])
@pytest.mark.parametrize("mode", MODES)
def test_takes_any_size(shape: tuple[int, int], mode: module.Mode) -> None:
    result = standardise(torch.rand(shape), mode)
    assert result.shape == shape
    assert torch.isfinite(result).all()


@pytest.mark.parametrize(
    ("scores", "mode", "message"),
    [
        (torch.zeros(3, 2), "row", "mode must be one of"),
        (torch.zeros(3), "class", r"scores must be a matrix"),
        (torch.tensor([[0.0, float("nan")]]), "class", "scores must be finite"),
        (torch.tensor([[0.0, float("inf")]]), "none", "scores must be finite"),
    ],
)
def test_refuses_unlawful_arguments(scores: Tensor, mode: module.Mode, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        standardise(scores, mode)
