import io
import struct
from collections.abc import Callable
from typing import Any

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


@pytest.mark.parametrize(("photometric", "first"), [(1, 0), (0, 255)])
def test_sixteen_bits_whose_zero_is_white_are_turned_about(photometric: int, first: int) -> None:
    samples = np.array([0, 16_384, 32_768, 65_535], "<u2").tobytes()
    tags = [(256, 4), (257, 1), (258, 16), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1), (279, 8)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 16) + samples + struct.pack("<H", len(tags)) + entries + bytes(4)
    wanted = [0, 64, 128, 255] if first == 0 else [255, 191, 127, 0]
    assert decoded(data)[0, :, 0].tolist() == wanted


def test_twelve_bit_gray_is_scaled_too() -> None:
    levels = np.array([0, 16, 2048, 4095] * 4, np.uint16)
    packed = b"".join((int(a) << 12 | int(b)).to_bytes(3) for a, b in levels.reshape(-1, 2))
    tags = [(256, 16), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    np.testing.assert_array_equal(decoded(data)[0, :, 0], levels >> 4)


@pytest.mark.parametrize("values", [np.linspace(0, 1, 9, dtype=np.float32), np.arange(9, dtype=np.int32)])
def test_samples_whose_black_and_white_nobody_knows_are_refused(values: np.ndarray) -> None:
    picture = Image.fromarray(values.reshape(3, 3))
    message = "samples of 32 bits .* save it with 8 or 16 bits"
    with pytest.raises(images.UnreadableImageError, match=f"photo: has {message}"):
        decoded(encoded(picture, "TIFF"))
    with pytest.raises(images.UnreadableImageError, match=message):
        images.upright_rgb(picture)


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


COLOUR = (200, 100, 50)


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [
        ("1", "PNG", (0, 0, 0)),
        ("L", "PNG", (124, 124, 124)),
        ("L", "JPEG", (124, 124, 124)),
        ("LA", "PNG", (124, 124, 124)),
        ("P", "PNG", COLOUR),
        ("P", "GIF", COLOUR),
        ("RGBA", "PNG", COLOUR),
        ("CMYK", "JPEG", COLOUR),
        ("CMYK", "TIFF", COLOUR),
        ("YCbCr", "JPEG", COLOUR),
    ],
)
def test_every_mode_becomes_rgb_of_the_same_colour(mode: str, kind: str, expected: tuple[int, ...]) -> None:
    image = Image.new("RGB", (9, 7), COLOUR).convert(mode, dither=Image.Dither.NONE, palette=Image.Palette.ADAPTIVE)
    pixels = decoded(encoded(image, kind))
    assert pixels.shape == (7, 9, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 3


def test_alpha_is_dropped_and_what_it_hid_is_seen() -> None:
    assert (decoded(encoded(Image.new("RGBA", (4, 4), (*COLOUR, 0)), "PNG")) == COLOUR).all()
    palette = Image.new("RGB", (4, 4), COLOUR).quantize(2)
    assert (decoded(encoded(palette, "PNG", transparency=bytes([0, 0]))) == COLOUR).all()


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_the_first_frame_of_an_animation_counts(kind: str, options: dict[str, bool]) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    pixels = decoded(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
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


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_left_of_a_truncated_file_is_refused_or_has_every_pixel(kind: str, options: dict[str, Any]) -> None:
    data = encoded(Image.effect_noise((24, 24), 80).convert("RGB"), kind, **options)
    whole, refused = decoded(data), 0
    for length in range(0, len(data), 7):
        try:
            np.testing.assert_array_equal(decoded(data[:length]), whole)
        except images.UnreadableImageError:
            refused += 1
    assert refused > len(data) // 7 - 3


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
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
