"""Cells of the encoder's map as views: the same embeddings whatever the batches, and what they are of a ViT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from clipdistill import params
from clipdistill.clip import run, teacher, views
from clipdistill.datasets.images import content_hash
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ParamsError
from clipdistill.students import tokens

teacher.register_architectures()


def value_path(tower: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """A vision transformer's last block without query and key, written out (MaskCLIP)."""
    values = tower._embeds(images)
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        values = block(values)
    width = values.shape[-1]
    weight, bias = (part[2 * width :] for part in (last.attn.in_proj_weight, last.attn.in_proj_bias))
    values = values + last.attn.out_proj(nn.functional.linear(last.ln_1(values), weight, bias))
    values = values + last.mlp(last.ln_2(values))
    return tower.ln_post(values[:, 1:]) @ tower.proj


@torch.no_grad()
def test_cells_of_a_transformer_are_its_value_path() -> None:
    tower = teacher.create("ViT-B-32").visual
    images = torch.randn(2, 3, 224, 224)
    cells = tokens.dense_embeddings(tower, images)
    assert cells.shape == (2, 49, 512)
    torch.testing.assert_close(cells, value_path(tower, images), atol=1e-5, rtol=1e-4)
    assert (cells - tokens.token_embeddings(tower, images)[1]).abs().max() > 1e-3


@torch.no_grad()
def test_cells_of_a_convolutional_tower_are_its_patches() -> None:
    tower = teacher.create("scenes-tiny").visual
    images = torch.randn(2, 3, 96, 96)
    assert torch.equal(tokens.dense_embeddings(tower, images), tokens.token_embeddings(tower, images)[1])
    assert tokens.cells_a_side(tower, 96) == 3


def test_cells_lie_over_the_whole_image_row_by_row() -> None:
    table = ImageTable(
        Path(), ["a"], ["a"], *(np.array([side], np.int32) for side in (80, 40)), np.array([1]), ["x"], 9
    )
    found = views.cells(table, 2)
    assert found.box.tolist() == [[0, 0, 40, 20], [40, 0, 80, 20], [0, 20, 40, 40], [40, 20, 80, 40]]
    assert found.uniform_count == 4


@pytest.mark.parametrize(
    ("clip", "dense", "message"),
    [
        ({"model": "ViT-B-32"}, {"image_size": 128}, "takes images of 224 pixels alone, found 128; set it to clip"),
        ({}, {"image_size": 2048}, "64 cells a side, and more than 32 are not embedded at once"),
    ],
)
def test_a_size_that_cannot_be_is_refused(clip: dict[str, object], dense: dict[str, object], message: str) -> None:
    settings = params.Params.model_validate({"clip": clip, "views": {"dense": dense}})
    with pytest.raises(ParamsError, match=rf"views\.dense\.image_size: .*{message}"):
        run.requests("dense", settings)


def test_all_cells_are_those_that_the_tower_gives_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole embedder: shards, batches and lanes, with a number of images that fills none of them."""
    from clipdistill import distributed, store
    from clipdistill.clip import embed
    from clipdistill.clip.encoder import ImageEncoder
    from clipdistill.clip.pixels import ViewSource
    from clipdistill.clip.preprocessing import ViewTransform, normalise

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embed, "_MIN_ROWS", 32)
    monkeypatch.setattr(embed, "_ROW_UNIT", 4)
    rng, hashes = np.random.default_rng(0), []
    for row in range(11):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(f"{row:02}.png")
        hashes.append(content_hash(Path(f"{row:02}.png").read_bytes()))
    names = [f"{row:02}" for row in range(11)]
    sides = [np.full(11, 96, np.int32)] * 2
    sizes = np.array([Path(f"{name}.png").stat().st_size for name in names])
    table = ImageTable(tmp_path, names, [f"{name}.png" for name in names], *sides, sizes, hashes, 10_000)
    torch.manual_seed(0)
    model = teacher.create("scenes-tiny")
    own = teacher.preprocessing_of(model)
    seen = teacher.Preprocessing(96, own.mean, own.std, own.interpolation, own.resize_mode)
    clip = teacher.Teacher(model, lambda texts: torch.zeros(1), seen, 1.0, {"model": "scenes-tiny"})  # noqa: ARG005
    cells = views.cells(table, 3)
    work = embed.prepare("embed/dense-test", clip, table, cells, {})
    assert len(work.pending()) > 1
    source = ViewSource(table, views.whole(table), ViewTransform(seen, "squash"), 1)
    encoder = ImageEncoder(clip, "fp32", torch.device("cpu"), cells=True)
    embed.fill(work, work.pending(), source, encoder, 3, 2, lambda count: None, cells=9)  # noqa: ARG005
    work.finish()
    work.publish(Path("dense.zarr"))
    found = store.read_group(Path("dense.zarr")).read("embedding")
    pixels = torch.from_numpy(np.stack([np.asarray(table.open(row)) for row in range(11)])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = tokens.dense_embeddings(model.visual, normalise(pixels, seen)).reshape(99, -1)
    wanted = nn.functional.normalize(wanted, dim=-1).numpy()
    assert found.shape == (99, 64)
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    assert distributed.world_size() == 1
