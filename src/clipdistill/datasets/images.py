"""Opening one image file: one rule for all stages, and none of Pillow's silences.

The rule: only known formats; a limit on pixels before anything is decoded; the first frame of an animation; the EXIF
orientation applied, so that CLIP sees what a person sees; 16-bit gray scaled to 8 bits (Pillow alone clips it to
white); samples of 32 bits refused, since no file says what is black and what is white in them; anything else to RGB as
Pillow does it, which drops an alpha channel.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from clipdistill.errors import DataError, printable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# Pillow's own limit only warns, and it is the process's, not the caller's: `decode` has one in its place.
Image.MAX_IMAGE_PIXELS = None

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class UnreadableImageError(DataError):
    """A file that is no whole image of a known format and range, or is too large; its text is one line."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


def content_hash(data: bytes) -> str:
    """Hash of a file's bytes, 32 hexadecimal digits (BLAKE2b, 128 bits)."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def decode(data: bytes, name: str, max_pixels: int, limit: str = "dataset.max_pixels") -> Image.Image:
    """Decode an image file.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
        max_pixels: width x height above which it is refused undecoded.
        limit: parameter that says so.

    Returns:
        RGB image, upright.

    Raises:
        UnreadableImageError: not an image of a known format, truncated, too large, or of 32 bits a sample.
    """
    with opened(data, name, FORMATS, "an image of a known format") as image:
        if image.width * image.height > max_pixels:
            raise UnreadableImageError(
                f"{name}: {image.width} x {image.height} pixels are more than {limit} = {max_pixels}; scale it down, "
                "or set that higher for the pipeline"
            )
        image.load()
        # In place, and below no conversion where there is nothing to convert: each would copy all pixels.
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, name)


@contextmanager
def opened(data: bytes, name: str, formats: tuple[str, ...], kind: str) -> Iterator[Image.Image]:
    """Open an image file, not decoded yet, and whatever goes wrong in a `with` block is an error for people.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
        formats: Pillow's names of those that are taken.
        kind: what such a file is.

    Raises:
        UnreadableImageError: it is of none of the formats, or its decoding failed.
    """
    try:
        yield Image.open(io.BytesIO(data), formats=formats)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        reason = "is empty" if not data else f"is not {kind}"
        raise UnreadableImageError(f"{name}: {reason} ({', '.join(formats)})") from None
    except Exception as error:
        raise UnreadableImageError(f"{name}: cannot be decoded ({error})") from None


@dataclass(frozen=True, slots=True)
class Checked:
    """An image that can be decoded.

    Attributes:
        width: pixels, upright.
        height: pixels, upright.
        size: bytes.
        digest: `content_hash` of them.
    """

    width: int
    height: int
    size: int
    digest: str


def check(
    path: Path, max_pixels: int, limit: str = "dataset.max_pixels", offset: int = 0, size: int | None = None
) -> Checked | str:
    """Decode an image, to know that it can be; what is wrong with it, in a line, where it cannot.

    Args:
        path: of the image, or of a file that holds it.
        max_pixels: as for `decode`.
        limit: as for `decode`.
        offset: byte of the file at which the image begins.
        size: bytes of the image; None: all to the end of the file.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(-1 if size is None else size)
        image = decode(data, str(path), max_pixels, limit)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    except UnreadableImageError as error:
        return str(error)
    return Checked(image.width, image.height, len(data), content_hash(data))


def upright_rgb(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, scale 16 bits to 8, and bring any mode to RGB; the given image stays as it is.

    Raises:
        UnreadableImageError: its samples have 32 bits.
    """
    return _to_rgb(ImageOps.exif_transpose(image), "the image")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("I", "F"):
        raise UnreadableImageError(
            f"{name}: has samples of 32 bits (Pillow's mode {image.mode}), whose black and white are not known; save "
            "it with 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):
        # A TIFF may hold 12 bits, which Pillow leaves in the lower ones of 16.
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(BITSPERSAMPLE, (16,))[0]
        samples = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
        # In a TIFF 0 may be white; Pillow turns that about for 8 bits alone.
        white_is_zero = tags.get(PHOTOMETRIC_INTERPRETATION) == 0
        return Image.fromarray(255 - samples if white_is_zero else samples).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def read(path: Path, expected_hash: str, max_pixels: int) -> Image.Image:
    """Read an image of the table and notice when its bytes are no longer those that were checked.

    Args:
        path: file.
        expected_hash: `content_hash` when the table was made.
        max_pixels: as for `decode`.

    Raises:
        UnreadableImageError: missing, changed since, or undecodable.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(
            f"{path}: cannot be read ({error.strerror}); `dvc repro format` checks all"
        ) from None
    if content_hash(data) != expected_hash:
        raise UnreadableImageError(
            f"{path}: its bytes have changed since the image table was made; run `dvc repro --force format`"
        )
    return decode(data, str(path), max_pixels)
