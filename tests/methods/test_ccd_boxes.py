"""CCD's selection of classes and boxes of their activation maps, against slow references and the released rules."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from random_matrices import matrices
from torch import Tensor

from clipdistill.methods import ccd

quick = settings(deadline=None, max_examples=40)
WHOLE = [0.0, 0.0, 1.0, 1.0]
COMPONENTS: tuple[ccd.Component, ...] = ("all", "largest", "peak")

# Few values, so that maxima and regions tie often, and any values.
FEW = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])
ANY = st.floats(-1e3, 1e3, width=32)


def maps(elements: st.SearchStrategy[float] = ANY) -> st.SearchStrategy[Tensor]:
    """One to four maps of one size [K, h, w]."""
    shapes = arrays.array_shapes(min_dims=3, max_dims=3, max_side=6)
    return shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=elements)).map(torch.from_numpy)


def drawn(*rows: str) -> Tensor:
    """A map [1, h, w] from digits."""
    return torch.tensor([[[float(digit) for digit in row] for row in rows]])


# select_classes


def released_threshold(probabilities: Tensor, bound: float, start: float = 0.05) -> float:
    """The released search: windows of 100 images, a threshold that only rises, until bound < mean < bound + 2."""
    threshold = start
    for window in probabilities.split(100):
        if bound < (window >= threshold).sum(dim=1).double().mean() < bound + 2:
            break
        threshold += 0.001
    return threshold


def test_the_released_search_selects_twice_as_many_on_other_views() -> None:
    logits = torch.randn(5000, 20, generator=torch.Generator().manual_seed(0)) - 2.3
    small, large = torch.sigmoid(logits), torch.sigmoid(logits + 0.6)
    threshold = released_threshold(small, bound=4, start=0.15)
    assert 4 < (small >= threshold).sum(dim=1).double().mean() < 6.5
    assert (large >= threshold).sum(dim=1).double().mean() > 8
    mask, _ = ccd.select_classes(large, target_count=5)
    assert mask.sum() == 5 * 5000


def test_the_released_search_cannot_turn_back() -> None:
    probabilities = torch.full((1000, 20), 0.01)
    probabilities[:, :3] = 0.9  # three classes from the start, where more than four are asked for
    threshold = released_threshold(probabilities, bound=4)
    assert threshold == pytest.approx(0.06)
    assert (probabilities >= threshold).sum() == 3 * 1000
    assert ccd.select_classes(probabilities, 3)[0].sum() == 3 * 1000


@quick
@given(st.integers(1, 12), st.integers(1, 8), st.floats(0.01, 10), st.integers(0, 2**32 - 1))
def test_selection_hits_the_count_within_one_entry_without_ties(n: int, c: int, count: float, seed: int) -> None:
    order = torch.randperm(n * c, generator=torch.Generator().manual_seed(seed))
    probabilities = (order.float() / (n * c)).view(n, c)
    mask, threshold = ccd.select_classes(probabilities, count)
    assert mask.sum() == max(1, round(n * min(count, c)))
    assert abs(mask.sum().item() / n - min(count, c)) <= 1 / n
    assert probabilities[mask].min() == threshold


@quick
@given(matrices(st.sampled_from([0.0, 0.25, 0.5, 1.0])), st.floats(0.1, 8))
def test_ties_select_at_least_as_many_and_the_threshold_gives_the_mask_again(p: Tensor, count: float) -> None:
    mask, threshold = ccd.select_classes(p, count)
    asked = max(1, round(len(p) * min(count, p.shape[1])))
    assert torch.equal(mask, p >= threshold)
    assert mask.sum() >= asked
    assert (p > threshold).sum() < asked


def test_all_classes_or_a_constant_input_select_everything() -> None:
    probabilities = torch.rand(7, 4, generator=torch.Generator().manual_seed(0))
    for count in (4, 4.5, 1e6):
        mask, threshold = ccd.select_classes(probabilities, count)
        assert mask.all()
        assert threshold == probabilities.min()
    assert ccd.select_classes(torch.full((7, 4), 0.3), 1)[0].all()


def test_selection_is_exact_beyond_the_integers_of_float32() -> None:
    entries = 2**24 + 16
    probabilities = (torch.arange(entries, dtype=torch.float64) / entries).view(-1, 16)
    mask, threshold = ccd.select_classes(probabilities, 0.5)
    assert mask.sum() == entries // 32
    assert threshold == (entries - entries // 32) / entries


def test_selection_in_half_precision_applies_the_threshold_exactly() -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.7]]).bfloat16()
    mask, threshold = ccd.select_classes(probabilities, 2)
    assert mask.tolist() == [[False, False, True, True]]
    assert torch.equal(probabilities >= threshold, mask)


# cam_boxes


def slow_box(cam: Tensor, threshold: float, margin: float, component: str) -> list[float]:
    """Box of one map, cell by cell, with a flood fill."""
    (height, width), values = cam.shape, cam.numpy()
    low, high = values.min(), values.max()
    if low == high:
        return WHOLE
    cells = [(y, x) for y in range(height) for x in range(width)]
    peak = max(cells, key=lambda cell: (values[cell], -cell[0], -cell[1]))
    mask = {c for c in cells if (values[c] - low) / (high - low) > np.float32(threshold) or values[c] == high}
    regions, left = [], sorted(mask)
    while left:
        region, todo = set(), [left[0]]
        while todo:
            y, x = todo.pop()
            if (y, x) in mask and (y, x) not in region:
                region.add((y, x))
                todo += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        regions.append(region)
        left = [cell for cell in left if cell not in region]
    if component == "largest":  # of equal ones the first found is the first in reading order
        mask = max(regions, key=lambda region: (len(region), peak in region))
    elif component == "peak":
        mask = next(region for region in regions if peak in region)
    x0, x1 = min(x for _, x in mask) / width, (max(x for _, x in mask) + 1) / width
    y0, y1 = min(y for y, _ in mask) / height, (max(y for y, _ in mask) + 1) / height
    return [min(max(side, 0.0), 1.0) for side in (x0 - margin, y0 - margin, x1 + margin, y1 + margin)]


@pytest.mark.parametrize("component", COMPONENTS)
@settings(deadline=None, max_examples=80)
@given(cam=st.one_of(maps(FEW), maps(ANY)), threshold=st.sampled_from([0.0, 0.3, 0.5, 0.95]), margin=st.floats(0, 0.6))
def test_boxes_equal_a_flood_fill(cam: Tensor, threshold: float, margin: float, component: ccd.Component) -> None:
    boxes = ccd.cam_boxes(cam, threshold, margin, component)
    assert boxes.dtype == torch.float32
    expected = torch.tensor([slow_box(each, threshold, margin, component) for each in cam])
    torch.testing.assert_close(boxes, expected, rtol=0, atol=1e-6)


@quick
@given(maps(st.one_of(FEW, ANY)), st.floats(0, 0.99), st.floats(0, 0.5), st.floats(0, 0.5))
def test_boxes_lie_in_the_image_hold_every_high_cell_and_grow_with_the_margin(
    cam: Tensor, threshold: float, margin: float, more: float
) -> None:
    boxes = ccd.cam_boxes(cam, threshold, margin)
    x0, y0, x1, y1 = boxes.T
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert ((x0 < x1) & (y0 < y1)).all()
    low, high = cam.amin(dim=(1, 2), keepdim=True), cam.amax(dim=(1, 2), keepdim=True)
    for k, y, x in ((cam - low) / (high - low) > threshold).nonzero().tolist():
        height, width = cam.shape[1:]
        assert x0[k] <= x / width + 1e-6
        assert x1[k] >= (x + 1) / width - 1e-6
        assert y0[k] <= y / height + 1e-6
        assert y1[k] >= (y + 1) / height - 1e-6
    wider = ccd.cam_boxes(cam, threshold, margin + more)
    assert (wider[:, :2] <= boxes[:, :2]).all()
    assert (wider[:, 2:] >= boxes[:, 2:]).all()


def test_a_box_by_hand() -> None:
    cam = torch.zeros(1, 4, 8)
    cam[0, 1:3, 2:5] = 1
    torch.testing.assert_close(ccd.cam_boxes(cam, 0.95, 0.0), torch.tensor([[0.25, 0.25, 0.625, 0.75]]))
    widened = torch.tensor([[0.125, 0.125, 0.75, 0.875]])
    torch.testing.assert_close(ccd.cam_boxes(cam, 0.95, 0.125), widened)
    assert ccd.cam_boxes(cam, 0.95, 1e9).tolist() == [WHOLE]


def test_the_threshold_is_exclusive_but_for_the_maximum() -> None:
    cam = torch.tensor([[[0.0, 0.5, 0.75, 1.0]]])
    assert ccd.cam_boxes(cam, 0.5, 0.0).tolist() == [[0.5, 0.0, 1.0, 1.0]]
    assert ccd.cam_boxes(cam, math.nextafter(1.0, 0.0), 0.0).tolist() == [[0.75, 0.0, 1.0, 1.0]]
    # Scaled to the range of the map, not to its values.
    assert ccd.cam_boxes(3 * cam - 7, 0.5, 0.0).tolist() == [[0.5, 0.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("rows", "released"),
    [
        (("0001", "1000"), (3, 0)),  # slanted: the right side lies left of the left one
        (("0001", "0010", "0100"), (3, 1)),
        (("0100", "1110", "0100"), (1, 1)),  # one region, cut on both sides
        (("0100", "0001", "0010"), (1, 2)),  # several regions, one of them lost
    ],
)
def test_the_box_holds_every_cell_where_the_released_corners_lose_some(
    rows: tuple[str, ...], released: tuple[int, int]
) -> None:
    cam = drawn(*rows)
    cells = (cam[0] > 0.95).nonzero()  # in reading order
    first, last = cells[0, 1].item(), cells[-1, 1].item()
    assert (first, last) == released
    assert ((cells[:, 1] < first) | (cells[:, 1] > last)).any()
    height, width = cam.shape[1:]
    x0, y0, x1, y1 = ccd.cam_boxes(cam, 0.95, 0.0)[0].tolist()
    for y, x in cells.tolist():
        assert x0 * width <= x <= x1 * width - 1
        assert y0 * height <= y <= y1 * height - 1


def test_largest_and_peak_choose_a_region() -> None:
    cam = drawn("880000", "880009", "000000")
    assert ccd.cam_boxes(cam, 0.5, 0.0, "all").tolist() == pytest.approx([pytest.approx([0, 0, 1, 2 / 3])])
    assert ccd.cam_boxes(cam, 0.5, 0.0, "largest").tolist() == [pytest.approx([0, 0, 1 / 3, 2 / 3])]
    assert ccd.cam_boxes(cam, 0.5, 0.0, "peak").tolist() == [pytest.approx([5 / 6, 1 / 3, 1, 2 / 3])]


def test_equal_regions_are_decided_by_the_maximum_and_then_by_reading_order() -> None:
    sides = {"80008": 0.0, "80009": 0.8, "90009": 0.0, "80099": 0.6}
    for row, left in sides.items():
        assert ccd.cam_boxes(drawn(row), 0.5, 0.0, "largest")[0, 0].item() == pytest.approx(left), row
    three = drawn("80809")
    assert ccd.cam_boxes(three, 0.5, 0.0, "largest")[0].tolist() == pytest.approx([0.8, 0, 1, 1])
    # A region with a maximum later in reading order does not win over the first one of its size.
    assert ccd.cam_boxes(drawn("88090", "00000", "00099"), 0.5, 0.0, "largest")[0].tolist() == pytest.approx(
        [0, 0, 0.4, 1 / 3]
    )


def test_cells_that_touch_at_a_corner_are_not_connected() -> None:
    cam = drawn("900", "080", "088")
    assert ccd.cam_boxes(cam, 0.5, 0.0, "largest").tolist() == [pytest.approx([1 / 3, 1 / 3, 1, 1])]
    assert ccd.cam_boxes(cam, 0.5, 0.0, "peak").tolist() == [pytest.approx([0, 0, 1 / 3, 1 / 3])]


def spiral(side: int) -> Tensor:
    """A path one cell wide that winds into the middle: one region of about half the cells."""
    path = torch.zeros(side, side)
    y, x, dy, dx = 0, 0, 0, 1
    path[0, 0] = 1
    turned = 0
    while turned < 2:
        ahead = [(y + dy * step, x + dx * step) for step in (1, 2)]
        free = [0 <= a < side and 0 <= b < side and not path[a, b] for a, b in ahead]
        inside = 0 <= ahead[1][0] < side and 0 <= ahead[1][1] < side
        if free[0] and (free[1] or not inside):
            y, x, turned = *ahead[0], 0
            path[y, x] = 1
        else:
            dy, dx, turned = dx, -dy, turned + 1
    return path


def test_a_long_winding_region_is_one_and_takes_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    path = spiral(41)
    assert path.sum() > 800
    least, rounds = ccd._least_neighbour, []
    monkeypatch.setattr(ccd, "_least_neighbour", lambda *part: rounds.append(1) or least(*part))
    cam = torch.stack([path, path.flip(0), path.T, path.rot90()])
    cam[:, 20, 20] += 0.01
    boxes = ccd.cam_boxes(cam, 0.5, 0.0, "peak")
    assert boxes.tolist() == [WHOLE] * 4
    assert len(rounds) < 20


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize(
    "cam",
    [
        torch.zeros(1, 3, 4),
        torch.full((1, 1, 1), -7.0),
        torch.full((1, 2, 2), math.inf),
        torch.tensor([[[0.0, math.inf]]]),
        torch.tensor([[[-math.inf, 0.0]]]),
        torch.tensor([[[-3e38, 3e38]]]),
    ],
)
def test_a_map_that_cannot_be_scaled_gives_the_whole_image(cam: Tensor, component: ccd.Component) -> None:
    assert ccd.cam_boxes(cam, 0.95, 0.1, component).tolist() == [WHOLE]


@pytest.mark.parametrize("component", COMPONENTS)
def test_maps_do_not_touch_each_other(component: ccd.Component) -> None:
    cam = torch.rand(9, 7, 5, generator=torch.Generator().manual_seed(3))
    cam[4] = 0.5
    alone = torch.cat([ccd.cam_boxes(each[None], 0.6, 0.05, component) for each in cam])
    assert torch.equal(ccd.cam_boxes(cam, 0.6, 0.05, component), alone)
    assert ccd.cam_boxes(cam[:0], 0.6, 0.05, component).shape == (0, 4)


@pytest.mark.parametrize("component", COMPONENTS)
def test_half_precision_maps(component: ccd.Component) -> None:
    cam = drawn("0123", "3210", "0090").half()
    assert torch.equal(ccd.cam_boxes(cam, 0.2, 0, component), ccd.cam_boxes(cam.float(), 0.2, 0, component))


def test_boxes_leave_the_maps_as_they_are() -> None:
    cam = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = cam.detach().clone()
    assert not ccd.cam_boxes(cam, 0.5, 0.1, "largest").requires_grad
    assert torch.equal(cam.detach(), before)


# upsample_cam


def test_upsampling_is_bilinear_between_the_centres_of_the_cells() -> None:
    cam = torch.tensor([[[0.0, 4.0]], [[1.0, 1.0]]])
    result = ccd.upsample_cam(cam, 4)
    assert result.shape == (2, 4, 4)
    assert torch.equal(result[0], torch.tensor([0.0, 1.0, 3.0, 4.0]).expand(4, 4))
    assert torch.equal(result[1], torch.ones(4, 4))


def test_upsampling_to_the_same_size_changes_nothing() -> None:
    cam = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ccd.upsample_cam(cam, 3), cam)


# Unlawful arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ccd.select_classes(torch.ones(3), 1), "probabilities must be floating point"),
        (lambda: ccd.select_classes(torch.ones(2, 2).long(), 1), "probabilities must be floating point"),
        (lambda: ccd.select_classes(torch.ones(2, 2) + 1, 1), r"probabilities must lie in \[0, 1\]"),
        (lambda: ccd.select_classes(torch.ones(2, 2) * math.nan, 1), r"probabilities must lie in \[0, 1\]"),
        (lambda: ccd.select_classes(torch.ones(0, 2), 1), "at least one image"),
        (lambda: ccd.select_classes(torch.ones(2, 2), 0), "target_count must be greater than 0, but is 0"),
        (lambda: ccd.select_classes(torch.ones(2, 2), math.nan), "target_count"),
        (lambda: ccd.cam_boxes(torch.ones(2, 2), 0.5, 0), r"cam must be floating point \[K, h, w\]"),
        (lambda: ccd.cam_boxes(torch.ones(2, 0, 2), 0.5, 0), "cam must be floating point"),
        (lambda: ccd.cam_boxes(torch.ones(1, 2, 2).long(), 0.5, 0), "cam must be floating point"),
        (lambda: ccd.cam_boxes(torch.ones(1, 2, 2), 1.0, 0), r"threshold must be in \[0, 1\), but is 1.0"),
        (lambda: ccd.cam_boxes(torch.ones(1, 2, 2), -0.1, 0), "threshold"),
        (lambda: ccd.cam_boxes(torch.ones(1, 2, 2), 0.5, -0.1), "margin must be 0 or greater, but is -0.1"),
        (lambda: ccd.cam_boxes(torch.ones(1, 2, 2), 0.5, math.inf), "margin"),
        (lambda: ccd.cam_boxes(torch.ones(1, 2, 2), 0.5, 0, "any"), "component must be one of .*'peak'.*'any'"),  # type: ignore[arg-type]
        (lambda: ccd.cam_boxes(torch.tensor([[[0.0]], [[math.nan]]]), 0.5, 0), "no NaN, but map 1 has"),
        (lambda: ccd.upsample_cam(torch.ones(2, 2), 4), "cam must be floating point"),
        (lambda: ccd.upsample_cam(torch.ones(1, 2, 2), 0), "size must be 1 or greater, but is 0"),
    ],
)
def test_unlawful_arguments_are_named(call, message: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=message):
        call()
