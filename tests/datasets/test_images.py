import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from clipdistill.datasets import images

LIMIT = 10**6


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(images.decode(data, "photo", LIMIT))


def test_sixteen_bit_gray_is_scaled_not_clipped_to_white() -> None:
    levels = np.linspace(0, 65_535, 256, dtype=np.uint16).reshape(16, 16)
    pixels = decoded(encoded(Image.fromarray(levels), "PNG"))
    np.testing.assert_array_equal(pixels[..., 0], levels >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.zeros((8, 12, 3), np.uint8)
    upright[:4, :6] = 200
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decoded(encoded(stored, "PNG", exif=exif))
    assert pixels.shape == (8, 12, 3)
    np.testing.assert_array_equal(pixels, upright)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = (
        Image.new("RGB", (9, 7), (200, 100, 50)).convert(mode) if mode != "LA" else Image.new("LA", (9, 7), (90, 255))
    )
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    assert decoded(encoded(image, kind)).shape == (7, 9, 3)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    pixels = decoded(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (pixels == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "not an image of a known format"),
        (encoded(Image.new("RGB", (64, 64)), "PNG")[:60], "cannot be decoded|not an image"),
        (encoded(Image.new("RGB", (40, 40), "red"), "PPM"), "not an image of a known format"),
        (encoded(Image.new("1", (2000, 2000)), "PNG"), "2000 x 2000 pixels are more than dataset.max_pixels = 1000000"),
    ],
)
def test_what_is_no_whole_image_is_named(data: bytes, message: str) -> None:
    with pytest.raises(images.UnreadableImageError, match=f"photo: .*({message})"):
        images.decode(data, "photo", LIMIT)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_thin_and_tiny_images_are_read(size: tuple[int, int]) -> None:
    assert decoded(encoded(Image.new("RGB", size), "PNG")).shape == (size[1], size[0], 3)


def test_random_bytes_after_a_jpeg_header_never_raise_anything_else() -> None:
    good = bytearray(encoded(Image.effect_noise((48, 48), 80).convert("RGB"), "JPEG", exif=Image.Exif().tobytes()))
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(300):
        broken = bytearray(good)
        for position in rng.integers(0, len(good), 12):
            broken[position] = rng.integers(0, 256)
        try:
            images.decode(bytes(broken), "photo", LIMIT)
            outcomes["read"] += 1
        except images.UnreadableImageError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 0
