"""What half precision, the ends of ranges and the first of several faults come to: nothing is lost, and it is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clipdistill.methods import ccd, cdul, checks, ttd
from clipdistill.methods.standardise import standardise

GENERATOR = torch.Generator().manual_seed(5)


def half(*shape: int) -> Tensor:
    return torch.rand(shape, generator=GENERATOR).to(torch.bfloat16)


A, B, MAPS, WEIGHT = half(6, 4), half(6, 4), half(3, 5, 5), half(6)
TAGS, TAGGED, IMAGES, MASKS = half(6, 3, 4), torch.ones(6, 3, dtype=torch.bool), half(1, 3, 6, 7), half(1, 2, 6, 7)
OFFSET, BIAS = torch.tensor([0, 2, 4, 6]), torch.tensor([0.5, 0.25, 0.75, 0.9])

IN_FLOAT32: dict[str, Callable[[Callable[[Tensor], Tensor]], Tensor]] = {
    "debias": lambda to: ccd.debias(to(A), BIAS, 0.3),
    "refine": lambda to: ccd.refine(to(A)[:3], to(B), OFFSET, BIAS, 0.3),
    "refine, an image without views": lambda to: ccd.refine(to(A)[:4], to(B), torch.tensor([0, 2, 4, 6, 6]), BIAS, 0.3),
    "label_loss": lambda to: ccd.label_loss(to(A), to(B)),
    "label_loss, weighted": lambda to: ccd.label_loss(to(A), to(B), to(WEIGHT)),
    "consistency_loss": lambda to: ccd.consistency_loss(to(A), to(B)),
    "cam_boxes": lambda to: ccd.cam_boxes(to(MAPS), 0.6, 0.1),
    "gradient_alignment": lambda to: cdul.gradient_alignment(to(A), to(B)),
    "gradient_alignment, softmax": lambda to: cdul.gradient_alignment(to(A), to(B), head="softmax"),
    "bernoulli_kl": lambda to: cdul.bernoulli_kl(to(A), to(B)),
    "categorical_kl": lambda to: cdul.categorical_kl(to(A), to(B)),
    "image_scores": lambda to: ttd.image_scores(to(A), to(TAGS), TAGGED),
    "text_scores": lambda to: ttd.text_scores(to(A), to(TAGS), TAGGED),
    "pamr": lambda to: ttd.pamr(to(IMAGES), to(MASKS), (1, 2), 2),
}


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    of_half, of_float = IN_FLOAT32[name](lambda values: values), IN_FLOAT32[name](Tensor.float)
    assert of_half.dtype == torch.float32
    torch.testing.assert_close(of_half, of_float, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in IN_FLOAT32 if name != "cam_boxes"])
def test_double_precision_stays(name: str) -> None:
    assert IN_FLOAT32[name](Tensor.double).dtype == torch.float64


def test_a_map_in_half_precision_is_scaled_in_float32() -> None:
    """Scaled in bfloat16, two of its cells would fall on the other side of the threshold."""
    rows = [[0.83203125, 0.2392578125, 0.50390625], [0.70703125, 0.5390625, 0.54296875]]
    cam = torch.tensor([[*rows, [0.5625, 0.10693359375, 0.5390625]]], dtype=torch.bfloat16)
    assert torch.equal(ccd.cam_boxes(cam, 0.6, 0.0), ccd.cam_boxes(cam.float(), 0.6, 0.0))


def test_boxes_of_double_maps_are_float32() -> None:
    assert IN_FLOAT32["cam_boxes"](Tensor.double).dtype == torch.float32


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
def test_labels_and_predictions_at_the_ends_stay_finite(head: cdul.Head) -> None:
    ends = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    moved = cdul.gradient_alignment(ends, torch.tensor([[0.0, 1.0, 1.0, 0.0]]), head=head)
    assert torch.isfinite(moved).all()
    assert ((moved >= 0) & (moved <= 1)).all()


def test_the_first_of_several_faults_is_named() -> None:
    with pytest.raises(ValueError, match="for class 1"):
        ccd.debias(torch.rand(2, 4), torch.tensor([1.0, 0.0, -1.0, 2.0]))
    with pytest.raises(ValueError, match="leaves image row 2 without views"):
        checks.counts_of_views(torch.tensor([0, 1, 2, 2, 3, 3]), 3)
    with pytest.raises(ValueError, match="decreases over image row 1"):
        checks.counts_of_views(torch.tensor([0, 3, 2, 4, 3]), 3, allow_empty=True)


@pytest.mark.parametrize("value", [-0.25, 1.25, float("nan")])
def test_a_value_outside_the_unit_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 1\]"):
        checks.require_unit_range(labels=torch.tensor([0.0, 1.0, value]))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_values_that_differ_by_rounding_alone_are_equal_whatever_their_size(sign: float) -> None:
    large = sign * (1e6 + torch.tensor([[0.0, 1e-7], [1e-7, 0.0], [0.0, 0.0]], dtype=torch.float64))
    assert (standardise(large, "class") == 0.5).all()
    apart = sign * (1e6 + torch.tensor([[0.0, 1e-4], [1e-4, 0.0], [0.0, 0.0]], dtype=torch.float64))
    assert (standardise(apart, "class") != 0.5).any()


@pytest.mark.parametrize(("prediction", "inside"), [(0.0, cdul.EPS), (1.0, 1 - cdul.EPS)])
def test_a_prediction_at_an_end_counts_as_one_beside_it(prediction: float, inside: float) -> None:
    label = torch.tensor([[0.5]])
    at_the_end, beside = (cdul.gradient_alignment(label, torch.tensor([[p]])) for p in (prediction, inside))
    assert torch.equal(at_the_end, beside)
    assert 0.001 < at_the_end.item() < 0.999


@pytest.mark.parametrize("weight", [-1.5, 1.5])
def test_a_weight_beyond_one_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight must be in \[-1, 1\]"):
        cdul.final_similarity(A.float(), B.float(), weight)


def test_a_single_known_entry_is_its_own_mean() -> None:
    known = torch.zeros(6, 4, dtype=torch.bool)
    known[2, 1] = True
    alone = cdul.bernoulli_kl(A.float()[2:3, 1:2], B.float()[2:3, 1:2])
    torch.testing.assert_close(cdul.bernoulli_kl(A.float(), B.float(), known), alone)


def test_a_map_can_be_brought_to_one_cell() -> None:
    assert ccd.upsample_cam(MAPS.float(), 1).shape == (3, 1, 1)


def test_a_class_that_no_image_shows_has_a_bias_that_can_be_divided_by() -> None:
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    bias = ccd.class_bias(scores, max_entropy=1.0)
    assert (bias > 0).all()
    assert torch.isfinite(ccd.debias(scores, bias)).all()
    smallest = ccd.class_bias(torch.tensor([[1e-44, 0.0]]), max_entropy=1.0)
    assert smallest.min() >= torch.finfo(torch.float32).tiny
