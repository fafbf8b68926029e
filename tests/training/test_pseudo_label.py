from pathlib import Path

import numpy as np
import pytest
import torch

from clipdistill import store
from clipdistill.methods import cdul
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
