from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy_training import Toy, make_table

from clipdistill.errors import ArtifactError
from clipdistill.params import CcdBiasParams, CcdParams, CcdTrainParams
from clipdistill.training.ccd_labels import CcdLabels

# The first class is surest in the first two images, the second in the third; the last image is as unsure as can be.
WHOLE = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.3, 0.5, 0.2], [1 / 3, 1 / 3, 1 / 3]])
FLOOR = 0.15

# Bias by hand: 0.7 and 0.5 of the sure images, and for the class that none is of, the mean of their tops 0.8, 0.6, 0.5.
BIAS = [0.7, 0.5, 1.9 / 3]

# ln 3 = 1.099 is the last image's entropy; the third one's is 1.030.
PARAMS = CcdParams(
    bias=CcdBiasParams(entropy_max=1.05, min_count=1, relative=False),
    floor=FLOOR,
    ratio=0.2,
    train=CcdTrainParams(unsure_weight=0.1),
)

# Two views of the first image, none of the second, one of the third, two of the last.
VIEWS = torch.tensor([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
OFFSET = torch.tensor([0, 2, 2, 3, 5])
HIGHEST = [[0.9, 0.7, 0.1], None, [0.1, 0.1, 0.8], [0.5, 1.0, 0.0]]


def by_hand(value: Callable[[int, int], float]) -> torch.Tensor:
    return torch.tensor([[value(row, column) for column in range(3)] for row in range(4)])


def first(row: int, column: int, floor: float) -> float:
    return max(float(WHOLE[row, column]), floor) / BIAS[column]


def mixed(row: int, column: int, old: float, floor: float) -> float:
    views = HIGHEST[row]
    return old if views is None else 0.2 * old + 0.8 * max(views[column], floor) / BIAS[column]


@pytest.fixture
def initial() -> CcdLabels:
    return CcdLabels.initial(WHOLE, WHOLE, PARAMS)


def test_bias_and_weights_of_the_images(initial: CcdLabels) -> None:
    torch.testing.assert_close(initial.bias, torch.tensor(BIAS))
    assert initial.weight.tolist() == pytest.approx([1, 1, 1, 0.1])


def test_the_first_labels_are_clamped_and_their_worth_is_not(initial: CcdLabels) -> None:
    raw = by_hand(lambda row, column: first(row, column, 0.0))
    assert raw.max() > 1.1
    torch.testing.assert_close(initial.raw, raw[None])
    torch.testing.assert_close(initial.labels, by_hand(lambda r, c: min(1.0, first(r, c, FLOOR))))
    assert initial.labels[0, 0] == 1
    assert initial.labels[0, 1].item() == pytest.approx(0.3)


def test_a_relative_bias_keeps_labels_below_1_and_in_order() -> None:
    params = PARAMS.model_copy(update={"bias": CcdBiasParams(entropy_max=1.05, min_count=1, relative=True)})
    relative, cut = (
        CcdLabels.initial(WHOLE, WHOLE, chosen).updated(VIEWS, OFFSET, chosen) for chosen in (params, PARAMS)
    )
    torch.testing.assert_close(relative.bias, torch.tensor(BIAS) / min(BIAS))
    torch.testing.assert_close(relative.raw, cut.raw * min(BIAS))
    assert relative.labels.max() <= 1
    assert (relative.labels == 1).sum() < (cut.labels == 1).sum()


def test_the_bias_is_measured_on_the_whole_images_whatever_the_first_labels() -> None:
    other = WHOLE.flip(0) / 2
    labels = CcdLabels.initial(other, WHOLE, PARAMS)
    torch.testing.assert_close(labels.bias, torch.tensor(BIAS))
    assert labels.weight.tolist() == pytest.approx([1, 1, 1, 0.1])
    torch.testing.assert_close(labels.raw[0], other / torch.tensor(BIAS))


def test_an_update(initial: CcdLabels) -> None:
    updated = initial.updated(VIEWS, OFFSET, PARAMS)
    # Labels go on from the clamped ones, raw ones from the raw ones.
    labels = by_hand(lambda r, c: min(1.0, mixed(r, c, min(1.0, first(r, c, FLOOR)), FLOOR)))
    raw = by_hand(lambda r, c: mixed(r, c, first(r, c, 0.0), 0.0))
    assert raw.max() > 1.1
    torch.testing.assert_close(updated.labels, labels)
    torch.testing.assert_close(updated.raw, torch.stack([initial.raw[0], raw]))
    assert torch.equal(updated.labels[1], initial.labels[1])
    assert torch.equal(updated.raw[1, 1], initial.raw[0, 1])
    assert torch.equal(updated.bias, initial.bias)
    assert torch.equal(updated.weight, initial.weight)


def test_a_second_update_goes_on_from_the_first(initial: CcdLabels) -> None:
    once = initial.updated(VIEWS, OFFSET, PARAMS)
    twice = once.updated(VIEWS, OFFSET, PARAMS)
    assert twice.raw.shape == (3, 4, 3)
    assert torch.equal(twice.raw[:2], once.raw)
    torch.testing.assert_close(twice.raw[2], by_hand(lambda r, c: mixed(r, c, float(once.raw[1, r, c]), 0.0)))
    expected = by_hand(lambda r, c: min(1.0, mixed(r, c, float(once.labels[r, c]), FLOOR)))
    torch.testing.assert_close(twice.labels, expected)


def test_a_ratio_of_one_keeps_the_labels(initial: CcdLabels) -> None:
    updated = initial.updated(VIEWS, OFFSET, PARAMS.model_copy(update={"ratio": 1.0}))
    assert torch.equal(updated.labels, initial.labels)
    assert torch.equal(updated.raw[1], initial.raw[0])


def test_round_trip(toy: Toy, initial: CcdLabels, tmp_path: Path) -> None:
    updated = initial.updated(VIEWS, OFFSET, PARAMS)
    updated.write(tmp_path / "labels.zarr", toy[0], 1)
    found = CcdLabels.read(tmp_path / "labels.zarr", toy[0])
    for name in ("labels", "raw", "bias", "weight"):
        assert torch.equal(getattr(found, name), getattr(updated, name)), name
        assert getattr(found, name).dtype == torch.float32, name
    # What was read can be gone on from.
    again = found.updated(VIEWS, OFFSET, PARAMS)
    assert torch.equal(again.raw, updated.updated(VIEWS, OFFSET, PARAMS).raw)


def test_labels_of_another_table_are_refused(toy: Toy, initial: CcdLabels, tmp_path: Path) -> None:
    other, _ = make_table(tmp_path / "images", 4, seed=9)
    initial.write(tmp_path / "labels.zarr", toy[0], 1)
    with pytest.raises(ArtifactError, match=r"labels\.zarr was made with table"):
        CcdLabels.read(tmp_path / "labels.zarr", other)
    with pytest.raises(ArtifactError, match="missing"):
        CcdLabels.read(tmp_path / "nothing.zarr", other)
