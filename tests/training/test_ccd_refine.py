"""CLIP's scores of the views that were pointed at: block by block the same as all at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import Toy

from clipdistill import store
from clipdistill.clip import similarity
from clipdistill.methods import cdul
from clipdistill.params import Params, PseudoLabelParams
from clipdistill.training.ccd_refine import view_scores

TEACHER = {"model": "m", "weights": "w", "quick_gelu": False, "logit_scale": 50.0}
PARAMS = Params(pseudo_label=PseudoLabelParams(temperature="model"))


@pytest.mark.parametrize("counts", [[], [0, 0, 0], [3, 0, 4, 1, 0]])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_scores_in_blocks_equal_those_of_the_whole(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[int], rows: int
) -> None:
    monkeypatch.setattr(similarity, "_ROWS", rows)
    rng = np.random.default_rng(0)
    text, views = (rng.normal(size=(count, 6)).astype(np.float32) for count in (4, sum(counts)))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    views = views.astype(np.float16)
    offset = np.array([0, *np.cumsum(counts)], dtype=np.int64)
    store.write_group(tmp_path / "text.zarr", {"embedding": text}, TEACHER)
    arrays = {"embedding": views, "offset": offset}
    store.write_group(tmp_path / "cam.zarr", arrays, {**TEACHER, "table": toy[0].fingerprint})
    scores, found = view_scores(tmp_path / "text.zarr", tmp_path / "cam.zarr", toy[0], PARAMS)
    unit = views.astype(np.float64) / np.linalg.norm(views.astype(np.float64), axis=1, keepdims=True)
    torch.testing.assert_close(scores, cdul.scores(torch.from_numpy(unit @ text.T), 1 / 50), atol=1e-5, rtol=0)
    assert scores.shape == (sum(counts), 4)
    assert found.tolist() == offset.tolist()
