"""Opening one image file: one rule for all stages, and none of Pillow's silences.

The rule: only known formats; a limit on pixels before anything is decoded; the first frame of an animation; the EXIF
orientation applied, so that CLIP sees what a person sees; 16-bit gray scaled to 8 bits (Pillow alone clips it to
white); samples of 32 bits refused, since no file says what is black and what is white in them; anything else to RGB as
Pillow does it, which drops an alpha channel.
"""

from __future__ import annotations

import hashlib
import io
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
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise UnreadableImageError(
                f"{name}: {image.width} x {image.height} pixels are more than {limit} = {max_pixels}; scale it down, "
                "or set that higher for the pipeline"
            )
        image.load()
        # In place, and below no conversion where there is nothing to convert: each would copy all pixels.
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, name)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        kind = "is empty" if not data else "is not an image of a known format"
        raise UnreadableImageError(f"{name}: {kind} ({', '.join(FORMATS)})") from None
    except Exception as error:
        raise UnreadableImageError(f"{name}: cannot be decoded ({error})") from None


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
