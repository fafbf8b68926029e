"""Figures of segmentation against torchmetrics and slow loops, the choice of the background, and overlap of maps."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from clipdistill.datasets.masks import masked
from clipdistill.evaluation import mask_picture, segmentation
from clipdistill.evaluation.segmentation import (
    THRESHOLDS,
    BackgroundSweep,
    Confusion,
    MaskOverlap,
    choose_background,
    segmentation_figures,
    with_background,
)
from clipdistill.evaluation.voc_palette import voc_palette
from clipdistill.methods import ttd

LABELS = 5
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, max_examples=8)


def made(seed: int, images: int = 3) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Best score, class of 4 and mask of some images, of different sizes; the last class is in no mask."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(images):
        shape = tuple(rng.integers(1, 7, 2))
        truth = rng.choice([0, 1, 2, 3, segmentation.IGNORE], shape).astype(np.uint8)
        score = rng.choice([0.05, 0.3, 0.5, 0.62, 1.0], shape).astype(np.float32)
        found.append((torch.from_numpy(score), torch.from_numpy(rng.integers(0, 3, shape)), torch.from_numpy(truth)))
    return found


def test_a_pixel_that_is_ignored_is_the_same_everywhere() -> None:
    assert segmentation.IGNORE == masked.IGNORE


@quick
@given(SEEDS)
def test_figures_are_those_of_torchmetrics_and_the_shares_of_a_class_add_up(seed: int) -> None:
    images, names = made(seed), list("abcde")
    confusion = Confusion(LABELS)
    reference = MulticlassJaccardIndex(LABELS, average="macro", ignore_index=segmentation.IGNORE)
    right = counted = 0
    for score, index, truth in images:
        predicted = with_background(score, index, 0.4)
        confusion.add(predicted.to(torch.uint8), truth)
        reference.update(predicted, truth.long())
        known = truth != segmentation.IGNORE
        right, counted = right + int((predicted == truth)[known].sum()), counted + int(known.sum())
    figures = segmentation_figures(confusion.counts, names, len(images), 0.4)
    if not counted:
        assert figures["mIoU"] is None
        return
    assert figures["mIoU"] == pytest.approx(100 * float(reference.compute()), abs=0.006)
    assert figures["pixel_accuracy"] == pytest.approx(100 * right / counted, abs=0.006)
    assert (figures["images"], figures["background"]) == (3, 0.4)
    assert figures["mIoU"] + figures["mFPR"] + figures["mFNR"] == pytest.approx(100, abs=0.02)
    assert figures["IoU"]["e"] is None
    shares = ttd.confusion_shares(confusion.counts)
    total = (shares.iou + shares.fpr + shares.fnr)[~torch.isnan(shares.iou)]
    torch.testing.assert_close(total, torch.ones_like(total))


def test_many_labels_do_not_overflow_a_byte() -> None:
    confusion = Confusion(200)
    confusion.add(torch.full((2, 3), 199, dtype=torch.uint8), torch.full((2, 3), 150, dtype=torch.uint8))
    assert confusion.counts[150, 199] == 6
    assert confusion.counts.sum() == 6


def test_what_is_no_label_is_refused() -> None:
    confusion, good = Confusion(3), torch.zeros(2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="truth must hold labels from 0 to 2"):
        confusion.add(good, good + 3)
    with pytest.raises(ValueError, match="predicted must hold labels"):
        confusion.add(good + segmentation.IGNORE, good)
    with pytest.raises(ValueError, match="shapes differ"):
        confusion.add(good, good[:1])
    with pytest.raises(ValueError, match="there must be 3 labels, but there are 2"):
        segmentation_figures(confusion.counts, ["a", "b"], 1, None)


def test_the_background_is_a_channel_before_the_classes() -> None:
    score, index = torch.tensor([[0.2, 0.5, 0.9]]), torch.tensor([[0, 1, 2]])
    assert with_background(score, index, 0.5).tolist() == [[0, 0, 3]]
    assert with_background(score, index, None).tolist() == [[0, 1, 2]]
    maps = torch.tensor([[[0.2, 0.1, 0.3]], [[0.1, 0.5, 0.3]], [[0.0, 0.1, 0.9]]])
    channels = torch.cat([torch.full_like(maps[:1], 0.5), maps])
    assert torch.equal(channels.argmax(dim=0), with_background(*maps.max(dim=0), 0.5))


@quick
@given(SEEDS)
def test_the_sweep_counts_what_each_background_alone_would(seed: int) -> None:
    images = made(seed)
    sweep = BackgroundSweep(LABELS)
    for image in images:
        sweep.add(*image)
    for threshold, counts in zip(THRESHOLDS, sweep.counts, strict=True):
        alone = Confusion(LABELS)
        for score, index, truth in images:
            alone.add(with_background(score, index, threshold), truth)
        assert torch.equal(counts, alone.counts)
    choice = choose_background(sweep.counts)
    assert list(choice.curve) == [f"{threshold:.2f}" for threshold in THRESHOLDS]
    if math.isnan(choice.background):
        assert set(choice.curve.values()) == {None}
        return
    best = max(value for value in choice.curve.values() if value is not None)
    first = next(key for key, value in choice.curve.items() if value == best)
    assert f"{choice.background:.2f}" == first


def test_the_grid_is_from_a_twentieth_to_nineteen() -> None:
    assert (THRESHOLDS[0], THRESHOLDS[-1], len(THRESHOLDS)) == (0.05, 0.95, 19)
    assert all(math.isclose(high - low, 0.05) for low, high in pairwise(THRESHOLDS))


def test_no_background_is_chosen_where_all_is_ignored() -> None:
    sweep = BackgroundSweep(LABELS)
    sweep.add(torch.ones(2, 2), torch.zeros(2, 2).long(), torch.full((2, 2), segmentation.IGNORE))
    assert math.isnan(choose_background(sweep.counts).background)


# MaskOverlap


def test_overlap_by_hand() -> None:
    overlap = MaskOverlap((0.25, 0.75))
    overlap.add(torch.tensor([[0.1, 0.5, 0.9, 1.0]]), torch.tensor([[0, 1, 1, 0]], dtype=torch.uint8))
    overlap.add(torch.tensor([[0.9], [0.1]]), torch.tensor([[True], [False]]))
    # Nothing shown and nothing to show; and a pixel that is ignored.
    overlap.add(torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.bool))
    overlap.add(torch.ones(1, 1), torch.full((1, 1), segmentation.IGNORE))
    figures = overlap.figures()
    assert figures["summed"] == {"0.25": 75.0, "0.75": 50.0}
    assert figures["per_image"] == {"0.25": round(100 * (2 / 3 + 1) / 2, 2), "0.75": round(100 * (1 / 3 + 1) / 2, 2)}
    assert overlap.best_threshold() == 0.25


@quick
@given(SEEDS)
def test_overlap_is_that_of_a_slow_loop_however_a_set_is_shared_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [(rng.random((4, 5)).round(1).astype(np.float32), rng.choice([0, 1, 255], (4, 5))) for _ in range(4)]
    whole, parts = MaskOverlap(), [MaskOverlap(), MaskOverlap()]
    for number, (scores, mask) in enumerate(images):
        for overlap in (whole, parts[number % 2]):
            overlap.add(torch.from_numpy(scores), torch.from_numpy(mask))
    for column, threshold in enumerate(THRESHOLDS):
        ratios, common, union = [], 0, 0
        for scores, mask in images:
            pairs = [(s > np.float32(threshold), m == 1) for s, m in zip(scores.flat, mask.flat, strict=True) if m < 2]
            both, either = sum(s and m for s, m in pairs), sum(s or m for s, m in pairs)
            common, union, ratios = common + both, union + either, [*ratios, *([both / either] if either else [])]
        wanted = torch.tensor([common, union, sum(ratios), len(ratios)], dtype=torch.float64)
        torch.testing.assert_close(whole.counts[column], wanted)
    torch.testing.assert_close(parts[0].counts + parts[1].counts, whole.counts)


def test_overlap_without_a_union_has_no_figures() -> None:
    overlap = MaskOverlap()
    overlap.add(torch.zeros(2, 2), torch.zeros(2, 2))
    assert set(overlap.figures()["summed"].values()) == {None}
    assert math.isnan(overlap.best_threshold())


def test_maps_and_masks_that_cannot_be() -> None:
    overlap = MaskOverlap()
    with pytest.raises(ValueError, match="shapes differ"):
        overlap.add(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="a mask 0, 1 or 255"):
        overlap.add(torch.zeros(2, 2), torch.full((2, 2), 2))
    with pytest.raises(ValueError, match="scores must be numbers"):
        overlap.add(torch.full((2, 2), torch.nan), torch.zeros(2, 2))


# Pictures


def test_a_picture_has_the_three_side_by_side() -> None:
    truth = np.zeros((10, 20), np.uint8)
    truth[:, 10:] = 255
    data = mask_picture.draw(Image.new("RGB", (20, 10), (1, 2, 3)), truth, np.full((10, 20), 15, np.uint8))
    assert data == mask_picture.draw(Image.new("RGB", (20, 10), (1, 2, 3)), truth, np.full((10, 20), 15, np.uint8))
    import io

    picture = Image.open(io.BytesIO(data))
    assert (picture.size, picture.mode) == ((68, 10), "RGB")
    places = (5, 22, 29, 39, 55)
    colours = [(1, 2, 3), (255, 255, 255), (0, 0, 0), (224, 224, 192), (192, 128, 128)]
    assert [picture.getpixel((x, 5)) for x in places] == colours


def test_a_large_picture_is_made_smaller() -> None:
    import io

    data = mask_picture.draw(Image.new("RGB", (2048, 1024)), *[np.zeros((1024, 2048), np.uint8)] * 2)
    assert Image.open(io.BytesIO(data)).size == (3 * 512 + 8, 256)


def test_colours_are_those_of_voc() -> None:
    colours = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)
    first = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    assert colours[:7].tolist() == list(map(list, first))
    assert colours[[8, 16, 20, 255]].tolist() == [[64, 0, 0], [0, 64, 0], [0, 64, 128], [224, 224, 192]]
