from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from clipdistill import store
from clipdistill.clip import pretrain, teacher
from clipdistill.errors import ArtifactError
from clipdistill.params import ClipParams, PretrainClipParams

CPU = torch.device("cpu")


def unit(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_loss_is_clips_where_all_captions_differ() -> None:
    image, text, scale = unit(6, 0), unit(6, 1), torch.tensor(10.0)
    target = torch.arange(6)
    logits = scale * image @ text.T
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(pretrain.contrastive_loss(image, text, scale, target), expected)


def test_equal_captions_are_each_others_positives() -> None:
    image, scale = unit(4, 0), torch.tensor(10.0)
    text = unit(2, 1)[torch.tensor([0, 0, 1, 1])]
    found = pretrain.contrastive_loss(image, text, scale, torch.tensor([0, 0, 1, 1]))
    target = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]) / 2
    logits = scale * image @ text.T
    by_image = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    by_text = -(target * logits.log_softmax(dim=0)).sum(dim=0).mean()
    torch.testing.assert_close(found, (by_image + by_text) / 2)


@pytest.fixture(scope="module")
def colours() -> tuple[torch.Tensor, list[str]]:
    """A world in which the caption is the colour."""
    rng = np.random.default_rng(0)
    names = ["red", "green", "blue"]
    which = rng.integers(0, 3, 96)
    pixels = torch.from_numpy(rng.integers(0, 60, (96, 3, 64, 64), dtype=np.uint8))
    pixels[torch.arange(96), torch.from_numpy(which)] += 180
    return pixels, [f"a photo of a {names[i]} thing." for i in which]


@pytest.mark.slow
def test_a_tiny_clip_learns_and_comes_back_from_its_file(
    colours: tuple[torch.Tensor, list[str]], tmp_path: Path
) -> None:
    settings = PretrainClipParams(epochs=4, batch_size=32, learning_rate=2e-3)
    model, history = pretrain.pretrain(settings, *colours, CPU, torch.float32)
    again, _ = pretrain.pretrain(settings, *colours, CPU, torch.float32)
    assert history[-1]["loss"] < history[0]["loss"]
    assert teacher.weights_digest(model) == teacher.weights_digest(again)
    pretrain.write_teacher(model, settings, "digest", history, tmp_path / "scenes")
    loaded = teacher.load(ClipParams(), tmp_path)
    assert loaded.identity["weights"] == teacher.weights_digest(model)
    assert loaded.logit_scale == pytest.approx(history[-1]["logit_scale"], rel=1e-5)


def test_captions_and_images_must_be_as_many(tmp_path: Path) -> None:
    store.write_group(tmp_path / "images.zarr", {"image": np.zeros((3, 8, 8, 3), np.uint8)}, {})
    with pytest.raises(ArtifactError, match=r"captions\.parquet is missing"):
        pretrain.read_captions(tmp_path)
    pq.write_table(pa.table({"caption": ["a", "b"]}), tmp_path / "captions.parquet")
    with pytest.raises(ArtifactError, match="3 images and 2 captions"):
        pretrain.read_captions(tmp_path)
