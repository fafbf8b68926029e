"""CDUL's scores, aggregation and first labels against its equations and slow references."""

import doctest
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from random_matrices import matrices, permutations
from torch import Tensor

from clipdistill.methods import cdul

quick = settings(deadline=None, max_examples=40)

UNIT = st.floats(0, 1, width=32)


@st.composite
def view_tables(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores of views and the offsets that cut them into images; often of equal counts."""
    images, classes = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    equal = st.integers(1, 4).map(lambda views: [views] * images)
    counts = draw(st.one_of(equal, st.lists(st.integers(1, 4), min_size=images, max_size=images)))
    scores = draw(arrays.arrays(np.float32, (sum(counts), classes), elements=UNIT))
    return torch.from_numpy(scores), torch.tensor([0, *np.cumsum(counts)])


def test_docstring_examples() -> None:
    result = doctest.testmod(cdul)
    assert result.attempted > 0
    assert result.failed == 0


# scores


def test_a_cosine_gap_of_0_05_gives_odds_of_exp_5() -> None:
    row = cdul.scores(torch.tensor([0.30, 0.25, 0.10], dtype=torch.float64))
    assert row.dtype == torch.float32
    assert math.log(row[0] / row[1]) == pytest.approx(5.0, abs=1e-4)


@quick
@given(matrices(st.floats(-1, 1, width=32)), st.floats(0.005, 10))
def test_scores_are_distributions_in_the_order_of_the_cosines(cosine: Tensor, temperature: float) -> None:
    result = cdul.scores(cosine, temperature)
    assert ((result >= 0) & (result <= 1)).all()
    assert torch.allclose(result.sum(dim=1), torch.ones(len(result)), atol=1e-5)
    expected = np.exp((cosine.double() / temperature).numpy() - (cosine.double() / temperature).numpy().max(1)[:, None])
    assert np.allclose(result, expected / expected.sum(1, keepdims=True), atol=1e-5)


@quick
@given(matrices(st.floats(-1, 1, width=16)), st.randoms(use_true_random=False))
def test_scores_commute_with_permutations_and_ignore_a_row_constant(cosine: Tensor, random) -> None:  # noqa: ANN001
    rows, columns = permutations(cosine, random)
    assert torch.allclose(cdul.scores(cosine[rows][:, columns]), cdul.scores(cosine)[rows][:, columns], atol=1e-6)
    assert torch.allclose(cdul.scores(cosine + 0.25), cdul.scores(cosine), atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, -0.01, math.nan, math.inf])
def test_scores_refuse_an_unlawful_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        cdul.scores(torch.zeros(2, 3), temperature)


@pytest.mark.parametrize("shape", [(), (3, 0)])
def test_scores_need_a_class(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cosine"):
        cdul.scores(torch.zeros(shape))


# extremes


@quick
@given(view_tables())
def test_extremes_equal_a_loop_over_the_images(table: tuple[Tensor, Tensor]) -> None:
    view_scores, offset = table
    maximum, minimum = cdul.extremes(view_scores, offset)
    views = [view_scores[start:stop] for start, stop in pairwise(offset.tolist())]
    assert torch.equal(maximum, torch.stack([rows.max(dim=0).values for rows in views]))
    assert torch.equal(minimum, torch.stack([rows.min(dim=0).values for rows in views]))


@quick
@given(view_tables())
def test_extremes_of_equal_counts_equal_the_general_way(table: tuple[Tensor, Tensor]) -> None:
    view_scores, offset = table
    # One more image, with a count that no other has, makes the table ragged.
    extra = torch.full((5, view_scores.shape[1]), 0.5)
    ragged = cdul.extremes(torch.cat([view_scores, extra]), torch.cat([offset, offset[-1:] + 5]))
    for plain, general in zip(cdul.extremes(view_scores, offset), ragged, strict=True):
        assert torch.equal(plain, general[:-1])


def test_extremes_of_no_images() -> None:
    maximum, minimum = cdul.extremes(torch.zeros(0, 3), torch.tensor([0]))
    assert maximum.shape == minimum.shape == (0, 3)


@pytest.mark.parametrize(
    ("view_scores", "offset", "message"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 2, 2, 3]), "image row 1 without views"),
        (torch.zeros(3, 2), torch.tensor([0, 2, 1, 3]), "image row 1 without views"),
        (torch.zeros(3, 2), torch.tensor([0, 2]), "from 0 to 2"),
        (torch.zeros(3, 2), torch.tensor([1, 3]), "from 1 to 3"),
        (torch.zeros(3, 2), torch.tensor([0, 3], dtype=torch.int32), "offset must be int64"),
        (torch.zeros(3, 2), torch.tensor([], dtype=torch.int64), "offset must be int64"),
        (torch.zeros(3, 2), torch.tensor([[0, 3]]), "offset must be int64"),
        (torch.zeros(3), torch.tensor([0, 3]), "view_scores must be"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.tensor([0, 3]), "view_scores must be"),
    ],
)
def test_extremes_refuse_what_is_no_view_table(view_scores: Tensor, offset: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cdul.extremes(view_scores, offset)


# aggregate, final_similarity


@quick
@given(matrices(UNIT, count=2))
def test_zeta_0_gives_alpha_and_zeta_above_1_gives_beta(pair: tuple[Tensor, Tensor]) -> None:
    maximum, minimum = torch.maximum(*pair), torch.minimum(*pair)
    assert torch.equal(cdul.aggregate(maximum, minimum, 0.0), maximum)
    assert torch.equal(cdul.aggregate(maximum, minimum, 1.001), minimum)


@quick
@given(matrices(UNIT, count=2), st.floats(0, 1, width=32))
def test_aggregate_follows_equations_5_and_6(pair: tuple[Tensor, Tensor], threshold: float) -> None:
    maximum, minimum = torch.maximum(*pair), torch.minimum(*pair)
    indicator = torch.tensor([[1.0 if value >= threshold else 0.0 for value in row] for row in maximum.tolist()])
    assert torch.equal(cdul.gamma(maximum, threshold), indicator.bool())
    result = cdul.aggregate(maximum, minimum, threshold)
    assert torch.equal(result, indicator * maximum + (1 - indicator) * minimum)


@quick
@given(matrices(UNIT, count=2))
def test_lambda_0_1_minus_1_give_mean_maximum_minimum(pair: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(cdul.final_similarity(*pair), (pair[0] + pair[1]) / 2)
    assert torch.equal(cdul.final_similarity(*pair, weight=1.0), torch.maximum(*pair))
    assert torch.equal(cdul.final_similarity(*pair, weight=-1.0), torch.minimum(*pair))


@quick
@given(matrices(UNIT, count=2), st.floats(-1, 1))
def test_final_similarity_follows_the_supplement(pair: tuple[Tensor, Tensor], weight: float) -> None:
    result = cdul.final_similarity(*pair, weight=weight)
    whole, local = pair
    assert torch.allclose(result, 0.5 * (whole + local + weight * (whole - local).abs()), atol=1e-6)
    assert ((result >= 0) & (result <= 1)).all()


@quick
@given(matrices(UNIT, count=3), st.randoms(use_true_random=False))
def test_labels_commute_withpermutations(triple: tuple[Tensor, Tensor, Tensor], random) -> None:  # noqa: ANN001
    rows, columns = permutations(triple[0], random)

    def labels(whole: Tensor, first: Tensor, second: Tensor) -> Tensor:
        local = cdul.aggregate(torch.maximum(first, second), torch.minimum(first, second), 0.4)
        return cdul.final_similarity(whole, local, 0.3)

    assert torch.equal(labels(*(part[rows][:, columns] for part in triple)), labels(*triple)[rows][:, columns])


def test_a_small_score_survives_the_minimum_beside_a_large_one() -> None:
    small = cdul.final_similarity(torch.tensor([[0.9]]), torch.tensor([[1e-12]]), weight=-1.0)
    assert small.item() == pytest.approx(1e-12)


def test_aggregation_refuses_unlawful_arguments() -> None:
    one, two = torch.zeros(2, 3), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"maximum \(2, 3\), minimum \(3, 2\)"):
        cdul.aggregate(one, two, 0.0)
    with pytest.raises(ValueError, match="threshold must be 0 or greater"):
        cdul.aggregate(one, one, -0.1)
    with pytest.raises(ValueError, match="threshold"):
        cdul.gamma(one, math.nan)
    with pytest.raises(ValueError, match="global_scores"):
        cdul.final_similarity(one, two)
    with pytest.raises(ValueError, match=r"weight must be in \[-1, 1\], but is 1.5"):
        cdul.final_similarity(one, one, 1.5)


def test_unknown_entries_count_neither_in_the_sum_nor_in_the_number() -> None:
    labels, logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, -1.0], [0.5, 0.3]])
    known = torch.tensor([[True, False], [True, True]])
    expected = torch.stack([cdul.bernoulli_kl(labels[i, j], logits[i, j]) for i, j in ((0, 0), (1, 0), (1, 1))]).mean()
    torch.testing.assert_close(cdul.bernoulli_kl(labels, logits, known), expected)
    assert cdul.bernoulli_kl(labels, logits, torch.zeros_like(known)) == 0
