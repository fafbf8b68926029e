import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from clipdistill.clip.preprocessing import ViewTransform, normalise
from clipdistill.clip.teacher import Preprocessing

SIZES = [(500, 375), (375, 500), (64, 64), (63, 200), (1, 1), (640, 33), (223, 224)]


def photo(size: tuple[int, int]) -> Image.Image:
    width, height = size
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def preprocessing(mode: str = "shortest", interpolation: str = "bicubic", size: int = 224) -> Preprocessing:
    constants = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return Preprocessing(size, *constants, interpolation, mode)


def whole(image: Image.Image) -> np.ndarray:
    return np.array([[0, 0, image.width, image.height]], dtype=np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_global_view_equals_open_clips_transform(size: tuple[int, int], mode: str, interpolation: str) -> None:
    image = photo(size)
    config = preprocessing(mode, interpolation)
    reference = image_transform(
        config.size,
        is_train=False,
        mean=config.mean,
        std=config.std,
        resize_mode=mode,
        interpolation=interpolation,
    )(image)
    ours = ViewTransform(config, "open_clip")(image, whole(image))
    assert torch.equal(normalise(torch.from_numpy(ours).permute(0, 3, 1, 2), config)[0], reference)


@pytest.mark.parametrize("size", [(2, 400), (400, 2)])
def test_the_middle_of_a_strip_is_what_open_clips_transform_sees(size: tuple[int, int]) -> None:
    image = photo(size)
    reference = np.asarray(CenterCrop(32)(Resize(32, InterpolationMode.BICUBIC)(image)))
    found = ViewTransform(preprocessing(size=32), "open_clip")(image, whole(image))[0]
    assert np.abs(found.astype(int) - reference).max() <= 1


@pytest.mark.parametrize("mode", ["shortest", "longest"])
def test_a_strip_of_one_pixel_takes_no_gigabytes_and_stays_in_sight(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resized = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *a, **k: resized.append(resize(*a, **k)) or resized[-1])
    image = Image.new("RGB", (1, 20_000), (10, 200, 30))
    pixels = ViewTransform(preprocessing(mode), "open_clip")(image, whole(image))
    assert (pixels[0, 112] == (10, 200, 30)).all(axis=-1).any()
    assert all(max(made.size) <= 224**2 for made in resized)


def test_squash_keeps_the_sides_that_a_centre_crop_loses() -> None:
    image = Image.new("RGB", (400, 100))
    image.paste((255, 0, 0), (0, 0, 40, 100))
    kept = ViewTransform(preprocessing(), "squash")(image, whole(image))
    lost = ViewTransform(preprocessing(), "open_clip")(image, whole(image))
    assert kept[0, ..., 0].max() == 255
    assert lost[0, ..., 0].max() == 0


def test_a_box_is_cut_before_it_is_resized() -> None:
    image = Image.new("RGB", (90, 90))
    image.paste((0, 255, 0), (30, 30, 60, 60))
    pixels = ViewTransform(preprocessing(size=32), "squash")(image, np.array([[30, 30, 60, 60]], np.float32))
    assert pixels.shape == (1, 32, 32, 3)
    assert (pixels[0, ..., 1] == 255).all()
    assert (pixels[0, ..., 0] == 0).all()


def test_fractional_and_outside_boxes_are_widened_and_kept_in_the_image() -> None:
    image = photo((20, 10))
    pixels = ViewTransform(preprocessing(size=16), "squash")
    np.testing.assert_array_equal(
        pixels(image, np.array([[2.4, -3.0, 9.1, 30.0]], np.float32)),
        pixels(image, np.array([[2, 0, 10, 10]], np.float32)),
    )
