"""Score maps: one window is the tower's own map, constants stay constant, mirrored images give mirrored maps."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from PIL import Image

from clipdistill.clip import teacher
from clipdistill.clip.preprocessing import normalise
from clipdistill.clip.prompts import embed_prompts
from clipdistill.clip.segment import Look, Segmenter, class_text, scaled_sides
from clipdistill.clip.teacher import Preprocessing, Teacher
from clipdistill.errors import ParamsError, TeacherError
from clipdistill.methods import ttd
from clipdistill.params import TtdParams
from clipdistill.students import tokens

CPU = torch.device("cpu")
PLAIN = Look(image_size=32, window=32, stride=16, scales=(1.0,), flip=False, passes=0, slope=10.0, shift=-2.5)
FULL = replace(PLAIN, image_size=40, scales=(1.0, 0.5, 1.5), flip=True, passes=2)


def clip_of(tower: torch.nn.Module, size: int = 32) -> Teacher:
    own = Preprocessing(size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic", "shortest")
    return Teacher(SimpleNamespace(visual=tower), lambda texts: torch.zeros(len(texts)), own, 1.0, {"model": "small"})


@pytest.fixture(scope="module")
def transformer() -> Teacher:
    torch.manual_seed(0)
    tower = VisionTransformer(image_size=32, patch_size=8, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=6)
    return clip_of(tower.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def tiny() -> Teacher:
    teacher.register_architectures()
    torch.manual_seed(0)
    model = teacher.create("scenes-tiny").requires_grad_(False)
    import open_clip

    tokenizer = open_clip.get_tokenizer("scenes-tiny")
    return Teacher(model, tokenizer, teacher.preprocessing_of(model), 1.0, {"model": "scenes-tiny"})


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def texts(count: int, width: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(1)), dim=-1)


def maps_of(clip: Teacher, look: Look, image: Image.Image, text: torch.Tensor, **changes: Any) -> torch.Tensor:  # noqa: ANN401
    return Segmenter(clip, look, "fp32", CPU, **changes).maps(image, text)


@torch.no_grad()
def test_one_window_gives_the_tower_s_own_cosines(transformer: Teacher) -> None:
    image, text = photo(32, 32), texts(3, 6)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    cells = tokens.dense_embeddings(transformer.model.visual, normalise(pixels, transformer.preprocessing))
    cosines = (F.normalize(cells, dim=-1) @ text.T).transpose(1, 2).reshape(1, 3, 4, 4)
    large = F.interpolate(cosines, size=(32, 32), mode="bilinear", align_corners=False)[0]
    found = maps_of(transformer, PLAIN, image, text)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ttd.calibrate(large))


@torch.no_grad()
def test_windows_are_averaged_where_they_overlap(transformer: Teacher) -> None:
    image, text = photo(44, 32), texts(2, 6)
    look = replace(PLAIN, slope=1e-3, shift=0.0)
    left, right = (maps_of(transformer, look, image.crop((x, 0, x + 32, 32)), text) for x in (0, 12))
    wanted = torch.cat([left[..., :12], (left[..., 12:] + right[..., :20]) / 2, right[..., 20:]], dim=2)
    torch.testing.assert_close(maps_of(transformer, look, image, text), wanted)


def test_a_constant_image_has_constant_maps(transformer: Teacher) -> None:
    """Without embeddings of places, through all sizes, windows that do not fit, mirrors and refinement."""
    places = transformer.model.visual.positional_embedding
    kept = places.clone()
    places.zero_()
    try:
        found = maps_of(transformer, FULL, Image.new("RGB", (61, 40), (200, 90, 10)), texts(3, 6))
    finally:
        places.copy_(kept)
    assert found.shape == (3, 40, 61)
    torch.testing.assert_close(found, found[:, :1, :1].expand_as(found))
    assert found[:, 0, 0].unique().numel() == 3


def test_a_mirrored_image_has_mirrored_maps(transformer: Teacher) -> None:
    image, text = photo(61, 40), texts(3, 6)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found, other = (maps_of(transformer, FULL, one, text) for one in (image, mirrored))
    torch.testing.assert_close(other.flip(-1), found, atol=1e-4, rtol=1e-4)
    plain = replace(FULL, flip=False)
    assert (
        maps_of(transformer, plain, mirrored, text).flip(-1) - maps_of(transformer, plain, image, text)
    ).std() > 0.01


def test_neither_the_other_texts_nor_the_batch_change_a_map(transformer: Teacher) -> None:
    image, text = photo(50, 40), texts(35, 6)
    whole = maps_of(transformer, FULL, image, text)
    torch.testing.assert_close(maps_of(transformer, FULL, image, text[33:34]), whole[33:34])
    torch.testing.assert_close(maps_of(transformer, FULL, image, text, batch=3), whole)


def test_the_class_of_each_pixel_is_that_of_the_highest_enlarged_map(transformer: Teacher) -> None:
    image, text = photo(75, 50), texts(35, 6)
    segmenter = Segmenter(transformer, PLAIN, "fp32", CPU)
    large = F.interpolate(segmenter.maps(image, text)[None], size=(50, 75), mode="bilinear", align_corners=False)[0]
    score, index = segmenter.best(image, text)
    assert torch.equal(score, large.amax(dim=0))
    assert torch.equal(index, large.argmax(dim=0))


def test_a_convolutional_tower_takes_windows_of_any_side(tiny: Teacher) -> None:
    look = replace(FULL, image_size=96, window=96, stride=48)
    found = maps_of(tiny, look, photo(120, 90), texts(2, 64))
    assert found.shape == (2, 96, 128)
    assert bool(((found > 0) & (found < 1)).all())


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((640, 480), (32, 43)),
        ((480, 640), (43, 32)),
        ((20, 10), (32, 64)),
        ((3, 3000), (256, 1)),
        ((80, 10), (32, 256)),
    ],
)
def test_sides_at_scale_one(size: tuple[int, int], sides: tuple[int, int]) -> None:
    assert scaled_sides(Image.new("RGB", size), 32) == sides


def test_a_strip_is_segmented(transformer: Teacher) -> None:
    score, index = Segmenter(transformer, FULL, "fp32", CPU).best(photo(1, 400), texts(2, 6))
    assert score.shape == index.shape == (400, 1)
    assert bool(torch.isfinite(score).all())


def test_half_precision_is_close(transformer: Teacher) -> None:
    import copy

    image, text = photo(50, 40), texts(3, 6)
    exact = maps_of(transformer, FULL, image, text)
    half = replace(transformer, model=copy.deepcopy(transformer.model))
    found = Segmenter(half, FULL, "bf16", CPU).maps(image, text)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=0.1, rtol=0)


def test_a_tower_that_gives_nan_is_named(transformer: Teacher) -> None:
    import copy

    broken = replace(transformer, model=copy.deepcopy(transformer.model))
    broken.model.visual.proj.fill_(torch.nan)
    with pytest.raises(TeacherError, match=r"NaN or infinity in float32: check the weights"):
        maps_of(broken, PLAIN, photo(32, 32), texts(1, 6))


# Look, class_text


def ttd_params(**segment: Any) -> TtdParams:  # noqa: ANN401
    return TtdParams.model_validate({"segment": segment, "slope": 7.0})


def test_the_look_is_what_the_parameters_say(transformer: Teacher, tiny: Teacher) -> None:
    look = Look.of(ttd_params(window="clip", stride=16, scales=[1.0], flip=False, pamr=3, image_size=48), transformer)
    assert look == Look(48, 32, 16, (1.0,), False, 3, 7.0, -2.5)
    assert Look.of(ttd_params(window=96, stride=96), tiny).window == 96


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 64}, r"ttd\.segment\.window: small takes images of 32 pixels alone, found 64; set it to clip"),
        ({"window": "clip", "stride": 33}, r"ttd\.segment\.stride: 33 pixels .* set it to 32 or less"),
    ],
)
def test_windows_that_cannot_be_are_refused(transformer: Teacher, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        Look.of(ttd_params(**changes), transformer)


def test_texts_of_classes(tiny: Teacher) -> None:
    templates = ["a photo of a {}.", "{}"]
    found = class_text(tiny, ["cat", "dog"], templates)
    assert torch.equal(found, embed_prompts(tiny, ["cat", "dog"], templates))
    torch.testing.assert_close(class_text(tiny, ["cat"], templates), found[:1])
    with pytest.raises(ParamsError, match="are the same to the text encoder"):
        class_text(tiny, ["cat", "Cat"], templates)
