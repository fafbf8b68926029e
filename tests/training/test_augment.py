import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipdistill.students import preprocessing
from clipdistill.training.augment import Augmentation, augmented, draw

NONE = Augmentation(flip=0.0, min_scale=1.0, jitter=0.0)


def images(count: int = 4, side: int = 24, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@given(st.integers(0, 2**31), st.integers(1, 500), st.integers(1, 40), st.integers(0, 40))
def test_numbers_depend_on_seed_epoch_and_row_alone(seed: int, epoch: int, rows: int, more: int) -> None:
    numbers = draw(rows, seed, epoch)
    assert torch.equal(numbers, draw(rows + more, seed, epoch)[:rows])
    assert ((numbers >= 0) & (numbers < 1)).all()


def test_other_seeds_and_epochs_have_other_numbers() -> None:
    assert len({draw(3, seed, epoch).numpy().tobytes() for seed in range(4) for epoch in range(1, 5)}) == 16


@settings(max_examples=25)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_an_image_does_not_depend_on_its_batch(order: list[int], count: int) -> None:
    augmentation = Augmentation(flip=0.5, min_scale=0.3, jitter=0.4)
    numbers, rows = draw(6, 0, 1), torch.tensor(order[:count])
    whole = augmentation(images(6), numbers)
    torch.testing.assert_close(augmentation(images(6)[rows], numbers[rows]), whole[rows], atol=1e-6, rtol=0)


def test_nothing_to_do_leaves_the_pixels() -> None:
    torch.testing.assert_close(NONE(images(), draw(4, 0, 1)), images() / 255, atol=1e-4, rtol=0)


def test_flips_by_their_probability() -> None:
    always = Augmentation(flip=1.0, min_scale=1.0, jitter=0.0)
    torch.testing.assert_close(always(images(), draw(4, 0, 1)), images().flip(-1) / 255, atol=1e-4, rtol=0)
    half = Augmentation(flip=0.5, min_scale=1.0, jitter=0.0)
    many = images(1).expand(400, -1, -1, -1)
    flipped = (half(many, draw(400, 0, 1)) - many.flip(-1) / 255).abs().amax(dim=(1, 2, 3)) < 1e-3
    assert 150 < int(flipped.sum()) < 250


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_flips_alone_are_the_general_path_without_its_rounding(flip: float) -> None:
    augmentation, pixels, numbers = Augmentation(flip, 1.0, 0.0), images(16, 80), draw(16, 0, 1)
    found = augmentation(pixels, numbers)
    sampled = augmentation._crop_and_flip(pixels / 255, numbers[:, :5])
    torch.testing.assert_close(found, sampled, atol=2e-5, rtol=0)
    flipped = (numbers[:, 4] < flip)[:, None, None, None]
    assert torch.equal(found, torch.where(flipped, pixels.flip(-1), pixels) / 255)


def test_views_follow_each_other_normalised() -> None:
    views = [Augmentation(0.5, 1.0, 0.0), Augmentation(0.5, 0.5, 0.5)]
    numbers = [draw(4, 0, 1, view) for view in (0, 1)]
    for count in (1, 2):
        found = augmented(images(), views[:count], numbers[:count])
        expected = [preprocessing.normalise(view(images(), own)) for view, own in zip(views, numbers, strict=True)]
        assert torch.equal(found, torch.cat(expected[:count]))
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_crop_is_the_slow_bilinear_sample_of_its_box() -> None:
    side, numbers = 12, draw(5, 3, 1)
    pixels = images(5, side)
    result = Augmentation(flip=0.0, min_scale=0.3, jitter=0.0)(pixels, numbers)
    for image, row, found in zip(pixels.numpy() / 255.0, numbers.double().numpy(), result, strict=True):
        np.testing.assert_allclose(found, slow_crop(image, row, 0.3), atol=1e-4)


def slow_crop(image: np.ndarray, row: np.ndarray, min_scale: float) -> np.ndarray:
    side = image.shape[1]
    scale = min_scale + (1 - min_scale) * row[0]
    ratio = math.exp(min(-math.log(scale), math.log(4 / 3)) * (2 * row[1] - 1))
    width, height = side * math.sqrt(scale * ratio), side * math.sqrt(scale / ratio)
    left, top = (side - width) * row[2], (side - height) * row[3]
    out = np.empty_like(image)
    for i in range(side):
        for j in range(side):
            x = np.clip(left + (j + 0.5) * width / side - 0.5, 0, side - 1)
            y = np.clip(top + (i + 0.5) * height / side - 0.5, 0, side - 1)
            x0, y0 = int(x), int(y)
            x1, y1 = min(x0 + 1, side - 1), min(y0 + 1, side - 1)
            upper = image[:, y0, x0] * (x0 + 1 - x) + image[:, y0, x1] * (x - x0)
            lower = image[:, y1, x0] * (x0 + 1 - x) + image[:, y1, x1] * (x - x0)
            out[:, i, j] = upper * (y0 + 1 - y) + lower * (y - y0)
    return out


@given(st.floats(0.05, 1.0), st.integers(0, 100))
def test_crops_lie_within_the_image_and_keep_the_area(min_scale: float, seed: int) -> None:
    """The coordinates themselves as an image: what is sampled lies where the crop lies."""
    side = 16
    ramp = torch.linspace(0, 255, side).to(torch.uint8)
    picture = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)])
    crops = Augmentation(0.0, min_scale, 0.0)(picture.to(torch.uint8).expand(8, -1, -1, -1), draw(8, seed, 1))
    width = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    height = crops[:, 1, -1, 0] - crops[:, 1, 0, 0]
    # Sample points are half a cell within the box, and clamped half a pixel within the image.
    assert (width * height <= 1.0 + 1e-4).all()
    assert (width * height >= (math.sqrt(min_scale) * (1 - 1 / side) - 2 / side) ** 2 - 0.05).all()


@pytest.mark.parametrize("jitter", [0.1, 0.3])
def test_colours_change_as_torchvision_changes_them(jitter: float) -> None:
    """Muted images, so that torchvision's clamp after each of its three steps has nothing to do."""
    pixels = (images() // 4 + 96).to(torch.uint8)
    numbers = draw(4, 1, 1)
    result = Augmentation(0.0, 1.0, jitter)(pixels, numbers)
    for image, row, found in zip(pixels / 255, numbers, result, strict=True):
        brightness, contrast, saturation = (1 + jitter * (2 * row[5:] - 1)).tolist()
        step = reference.adjust_brightness(image, brightness)
        step = reference.adjust_contrast(step, contrast)
        step = reference.adjust_saturation(step, saturation)
        torch.testing.assert_close(found, step, atol=2e-3, rtol=0)


def test_values_stay_in_range() -> None:
    result = Augmentation(0.5, 0.2, 1.0)(images(50), draw(50, 0, 1))
    assert result.min() >= 0
    assert result.max() <= 1
