from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipdistill import store
from clipdistill.methods import cdul
from clipdistill.methods.standardise import Mode, standardise
from clipdistill.params import CdulLabelParams, PseudoLabelParams
from clipdistill.training import pseudo_label


@pytest.fixture
def similarity(tmp_path: Path) -> store.Group:
    rng = np.random.default_rng(0)
    arrays = {
        "global": rng.uniform(0.1, 0.3, (6, 4)).astype(np.float32),
        "snippets": rng.uniform(0.1, 0.3, (54, 4)).astype(np.float32),
        "offset": np.arange(7) * 9,
    }
    store.write_group(tmp_path / "s.zarr", arrays, {"text": {"logit_scale": 25.0}})
    return store.read_group(tmp_path / "s.zarr")


def test_first_labels_follow_the_equations(similarity: store.Group) -> None:
    params = PseudoLabelParams(temperature=0.02, cdul=CdulLabelParams(threshold=0.5, weight=0.25))
    labels = pseudo_label.first_labels(similarity, params)
    whole = torch.softmax(torch.from_numpy(similarity.read("global")) / 0.02, dim=1)
    views = torch.softmax(torch.from_numpy(similarity.read("snippets")) / 0.02, dim=1).reshape(6, 9, 4)
    alpha, beta = views.amax(dim=1), views.amin(dim=1)
    aggregate = torch.where(alpha >= 0.5, alpha, beta)
    torch.testing.assert_close(labels.whole, whole)
    torch.testing.assert_close(labels.aggregate, aggregate)
    torch.testing.assert_close(labels.final, 0.5 * (whole + aggregate + 0.25 * (whole - aggregate).abs()))
    assert labels.share_of_maximum == pytest.approx(float((alpha >= 0.5).float().mean()))


COUNTS = {
    "as many views in every image": [9] * 40,
    "one view in every image": [1] * 40,
    "different numbers": [1, 4, 2, 30, 1, 1, 7, 7, 7, 16, 3, 90, 2, 5],
}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=list(COUNTS))
@pytest.mark.parametrize("views", [1, 2, 8, 31, 100, 10_000])
@pytest.mark.parametrize("mode", ["none", "both"])
def test_labels_in_blocks_equal_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[int], views: int, mode: Mode
) -> None:
    rng = np.random.default_rng(len(counts))
    offset = np.concatenate([[0], np.cumsum(counts)])
    whole, cosines = (rng.uniform(0.1, 0.3, (rows, 5)).astype(np.float32) for rows in (len(counts), sum(counts)))
    arrays = {"global": whole, "snippets": cosines, "offset": offset}
    store.write_group(tmp_path / "s.zarr", arrays, {"text": {"logit_scale": 25.0}})
    monkeypatch.setattr(pseudo_label, "_BLOCK_BYTES", views * 5 * 4)
    params = PseudoLabelParams(temperature=0.05, standardise=mode, cdul=CdulLabelParams(threshold=0.6, weight=0.25))
    found = pseudo_label.first_labels(store.read_group(tmp_path / "s.zarr"), params)

    maximum, minimum = cdul.extremes(cdul.scores(torch.from_numpy(cosines), 0.05), torch.from_numpy(offset))
    aggregate = standardise(cdul.aggregate(maximum, minimum, 0.6), mode)
    scores = cdul.scores(torch.from_numpy(whole), 0.05)
    assert torch.equal(found.aggregate, aggregate)
    assert torch.equal(found.scores, scores)
    assert torch.equal(found.final, cdul.final_similarity(standardise(scores, mode), aggregate, 0.25))
    assert 0 < found.share_of_maximum == float((maximum >= 0.6).float().mean()) < 1


@given(counts=st.lists(st.integers(0, 20), max_size=40), most=st.integers(1, 30))
def test_ranges_hold_whole_images_in_order_and_few_views(counts: list[int], most: int) -> None:
    offset = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64)
    ranges = list(pseudo_label.image_ranges(offset, most))
    assert [image for first, last in ranges for image in range(first, last)] == list(range(len(counts)))
    for first, last in ranges:
        assert sum(counts[first:last]) <= most or last == first + 1
    # No range could have taken the next image as well.
    for first, last in ranges[:-1]:
        assert sum(counts[first : last + 1]) > most


def test_an_image_without_snippets_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo_label, "_BLOCK_BYTES", 2 * 3 * 4)
    arrays = {
        "global": np.zeros((5, 3), np.float32),
        "snippets": np.zeros((6, 3), np.float32),
        "offset": np.array([0, 2, 4, 5, 5, 6]),
    }
    store.write_group(tmp_path / "s.zarr", arrays, {"text": {}})
    with pytest.raises(ValueError, match="offset leaves image row 3 without views"):
        pseudo_label.first_labels(store.read_group(tmp_path / "s.zarr"), PseudoLabelParams(temperature=0.01))


def test_the_models_own_temperature_is_the_reciprocal_of_its_scale(similarity: store.Group) -> None:
    own = pseudo_label.first_labels(similarity, PseudoLabelParams(temperature="model"))
    stated = pseudo_label.first_labels(similarity, PseudoLabelParams(temperature=1 / 25))
    torch.testing.assert_close(own.final, stated.final)


def test_standardised_labels_stay_labels(similarity: store.Group) -> None:
    labels = pseudo_label.first_labels(similarity, PseudoLabelParams(standardise="both"))
    assert ((labels.final > 0) & (labels.final < 1)).all()
    assert not torch.equal(labels.whole, cdul.scores(torch.from_numpy(similarity.read("global"))))


def test_only_what_a_method_uses_is_in_its_provenance() -> None:
    assert "cdul" not in pseudo_label.scoring("global", PseudoLabelParams())
    assert pseudo_label.scoring("cdul", PseudoLabelParams())["cdul"] == {"threshold": 0.0, "weight": 0.0}


def test_quality_is_null_without_any_known_label() -> None:
    labels = {"final": torch.rand(3, 2)}
    assert pseudo_label.label_quality(labels, np.full((3, 2), -1, np.int8), "skip") == {"final_mAP": None}
