"""What a reader of segmentation masks gives, and how the files of masks become class indices."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from clipdistill.datasets import images
from clipdistill.datasets.raw import Fence
from clipdistill.errors import DataError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from clipdistill.datasets.table import ClassName

Mask = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""Width and height, pixels."""

IGNORE = 255
"""Index of pixels that count nowhere."""

BACKGROUND = "background"

# Gray samples of fewer than 8 bits, which Pillow stretches to the whole range: by how much.
_STRETCHED = {2: 85, 4: 17}
_PNG_START, _PNG_BITS, _PNG_COLOUR = b"\x89PNG\r\n\x1a\n", 24, 25


@dataclass(frozen=True, slots=True, eq=False)
class MaskedImages:
    """The N images of a split, each with a mask.

    Attributes:
        classes: names in the order of the masks' indices, without the background.
        prompts: how a prompt says each of them.
        background: whether there is a background. Then 0 is its index, and class i has i + 1; else class i has i.
        ids: unique [N].
        paths: image files [N].
        mask_of: the mask of a row, given the size of its upright image.
        max_pixels: `dataset.max_pixels`, above which a file is refused before it is decoded.
    """

    classes: list[str]
    prompts: list[str]
    background: bool
    ids: list[str]
    paths: list[Path]
    mask_of: Callable[[int, Size], Mask]
    max_pixels: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> list[str]:
        """Names by index, the background among them where there is one."""
        return [BACKGROUND, *self.classes] if self.background else self.classes

    def open(self, row: int) -> tuple[Image.Image, Mask]:
        """Read an image and its mask.

        Returns:
            The image, RGB and upright, and its mask, uint8 [H, W]: indices of `labels`, or `IGNORE`.

        Raises:
            UnreadableImageError: the image is gone, broken or too large.
            DataError: the mask is, or it is of another size, or holds what is no index; the text names the file.
        """
        path = self.paths[row]
        image = images.decode(_bytes_of(path), str(path), self.max_pixels)
        return image, self.mask_of(row, image.size)


def masked_images(
    classes: Sequence[ClassName],
    background: bool,
    ids: list[str],
    paths: list[Path],
    mask_of: Callable[[int, Size], Mask],
    max_pixels: int,
) -> MaskedImages:
    """Put a split together, after checking that its labels can be told apart by an index of 8 bits.

    Raises:
        DataError: no image, too few or too many classes, or a class that is called as the background is, in whatever
            spelling.
    """
    names = [item.name for item in classes]
    if not ids:
        raise DataError("a split has no images; name one that has, in ttd.segment.train and ttd.segment.val")
    if called := [name for name in names if name.strip("_ ").casefold() == BACKGROUND]:
        raise DataError(
            f"a class is called {called[0]!r}, as what is no class is: rename it; where one's own list of classes is "
            f"meant to have a background, {BACKGROUND!r} is its first line"
        )
    if not 2 <= len(names) + background <= IGNORE:
        raise DataError(
            f"there are {len(names) + background} labels, the background among them where there is one; masks of 8 "
            f"bits tell 2 to {IGNORE} apart, since {IGNORE} marks pixels that do not count"
        )
    return MaskedImages(names, [item.prompt for item in classes], background, ids, paths, mask_of, max_pixels)


@dataclass(frozen=True, slots=True, eq=False)
class IndexFiles:
    """Masks that lie in PNG files of 8 bits a pixel: palette images or gray ones, whose values stand for classes.

    Attributes:
        paths: files [N].
        index_of: what a value of a pixel stands for: an index of `MaskedImages.labels`, or `IGNORE`.
        max_pixels: as there.
    """

    paths: list[Path]
    index_of: Mapping[int, int]
    max_pixels: int

    def __call__(self, row: int, size: Size) -> Mask:
        """Read the mask of a row: uint8 [H, W], of the size that its image has.

        Raises:
            DataError: see `MaskedImages.open`.
        """
        path = self.paths[row]
        values = _values(path, size, self.max_pixels)
        table = np.full(2**16 if values.dtype == np.uint16 else 2**8, -1, np.int16)
        table[list(self.index_of)] = list(self.index_of.values())
        indices = table[values]
        if (strange := values[indices < 0]).size:
            known = sorted(self.index_of)
            raise DataError(
                f"{path} has pixels of value {strange[0]}, which stands for no class: known here are {_ranges(known)}. "
                "Is it a mask of class indices, and of this data set?"
            )
        return indices.astype(np.uint8)


def _values(path: Path, size: Size, max_pixels: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """The values of an index image's pixels as they stand in the file, [H, W]."""
    data = _bytes_of(path)
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        if image.width * image.height > max_pixels:
            raise DataError(
                f"{path}: {image.width} x {image.height} pixels are more than dataset.max_pixels = {max_pixels}"
            )
        if image.mode not in ("P", "L", "1", "I;16"):
            raise DataError(
                f"{path} holds colours (Pillow's mode {image.mode}) where the indices of classes should be: save it "
                "as a palette or gray PNG whose values are the indices"
            )
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(printable(f"{path} is not a PNG: masks are read from PNG files of class indices")) from None
    except Exception as error:
        raise DataError(printable(f"{path}: the mask cannot be decoded ({error}); get it again")) from None
    require_size(str(path), image.size, size)
    values = np.asarray(image)
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    return values // _stretch(data) if image.mode == "L" else values


def _stretch(data: bytes) -> int:
    """What Pillow has multiplied the gray values of a PNG by."""
    gray = data.startswith(_PNG_START) and data[_PNG_COLOUR] == 0
    return _STRETCHED.get(data[_PNG_BITS], 1) if gray else 1


def require_size(name: str, found: Size, wanted: Size) -> None:
    """Refuse a mask that is not of its image's size.

    Args:
        name: what to call the mask.
        found: its size.
        wanted: the upright image's.

    Raises:
        DataError: they differ.
    """
    if found == wanted:
        return
    turned = found == wanted[::-1]
    cure = "the image's EXIF orientation turns it: make the mask of the upright image" if turned else "make it anew"
    raise DataError(
        f"{name}: the mask has {found[0]} x {found[1]} pixels, its image {wanted[0]} x {wanted[1]} as a person sees "
        f"it; {cure}, pixel by pixel"
    )


def existing_files(folder: Path, names: Sequence[str], cure: str) -> list[Path]:
    """Files below a folder, after checking that all are there and that no name leads out of it.

    Args:
        folder: that they may not leave.
        names: relative to it.
        cure: what to do where one is missing.

    Raises:
        DataError: a file is missing, or lies outside.
    """
    fence = Fence(folder)
    for name in names:
        if refusal := fence.check(name):
            raise DataError(printable(f"{name!r} below {folder}: {refusal[1]}; {cure}"))
    return [folder / name for name in names]


def _image_names(folder: Path, cure: str) -> list[str]:
    """Names of the image files right in a folder, hidden ones left out, sorted.

    Args:
        folder: where they lie.
        cure: what to do where there are none.

    Raises:
        DataError: there are none, or two differ in their suffixes alone.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}): {cure}") from None
    found = [name for name in names if PurePosixPath(name).suffix.lower() in images.SUFFIXES and name[0] != "."]
    if not found:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(images.SUFFIXES))}): {cure}")
    for stem, times in Counter(PurePosixPath(name).stem for name in found).items():
        if times > 1:
            raise DataError(
                f"{folder} holds {times} images called {stem!r}, and a mask would be theirs all: rename them"
            )
    return found


def named_alike(images_in: Path, masks_in: Path, cure: str) -> tuple[list[str], list[Path], list[Path]]:
    """Pair the images of a folder with the PNGs of the same names in another.

    Args:
        images_in: folder of the images.
        masks_in: folder of their masks.
        cure: what to do where one is missing.

    Returns:
        Ids, sorted by the images' names; the image of each; and its mask.

    Raises:
        DataError: as `_image_names` and `existing_files`.
    """
    names = _image_names(images_in, cure)
    ids = [PurePosixPath(name).stem for name in names]
    paths = existing_files(images_in, names, cure)
    return ids, paths, existing_files(masks_in, [f"{image_id}.png" for image_id in ids], cure)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise images.UnreadableImageError(f"{path}: cannot be read ({error.strerror}); get it again") from None


def _ranges(values: Sequence[int]) -> str:
    """Ascending numbers in short: 0 to 20, 255."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
