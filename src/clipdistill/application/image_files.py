"""Images on their way to a student: which files a person means, and their pixels, decoded ahead of the network."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipdistill.datasets import images
from clipdistill.datasets.ahead import ahead
from clipdistill.datasets.images import UnreadableImageError
from clipdistill.params import DatasetParams
from clipdistill.students import preprocessing
from clipdistill.students.preprocessing import Pixels

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]"
"""A path, a PIL image, or an array of bytes: [H, W, 3] in the order R, G, B, [H, W, 4] with an alpha channel that is
dropped as in a file, or [H, W] gray."""

logger = logging.getLogger(__name__)

T = TypeVar("T")
Read: TypeAlias = "Pixels | UnreadableImageError"

# What may follow height and width: gray, RGB, RGBA.
_CHANNELS = ((), (3,), (4,))

MAX_PIXELS: int = DatasetParams.model_fields["max_pixels"].default


def named_files(names: Sequence[str]) -> tuple[list[Path], list[UnreadableImageError]]:
    """Find the image files that a person names.

    Args:
        names: files; folders, searched to any depth for files with the usual endings; patterns with *, ?, [] and **
            (which a shell mostly resolves itself).

    Returns:
        Paths in the order of the names, those of a folder or a pattern sorted, no file twice however it is named; and
        a problem for each name that stands for no file. A name that exists is never taken for a pattern. Folders are
        searched without what is hidden in them and without linked folders; what they hold besides images is counted in
        the log.
    """
    found: dict[str, Path] = {}
    problems = []
    for name in names:
        try:
            files, why = _files_of(name)
        except OSError as error:
            files, why = [], f"cannot be looked for ({error.strerror})"
        if not files:
            problems.append(UnreadableImageError(f"{name}: {why}"))
        for file in files:
            # Unlike Path.resolve, it takes links that lead in a circle: those are told when they are opened.
            found.setdefault(os.path.realpath(file), file)
    return list(found.values()), problems


def _files_of(name: str) -> tuple[list[Path], str]:
    """Files that a name stands for, and what is wrong where there are none."""
    path = Path(name)
    if path.is_dir():
        return _images_in(path), f"the folder holds no image file ({', '.join(sorted(images.SUFFIXES))})"
    if path.exists() or not glob.has_magic(name):
        strange = path.exists() and not path.is_file()
        return [path] if path.is_file() else [], "it is no file" if strange else "there is no such file"
    matches = (Path(match) for match in sorted(glob.glob(name, recursive=True)))  # noqa: PTH207 - takes absolute ones
    return [match for match in matches if match.is_file()], "no file matches"


def _images_in(folder: Path) -> list[Path]:
    """Image files of a folder, sorted; the log counts what is passed over, for a person may take it for images."""
    found: list[Path] = []
    others: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        # Thumbnails and caches; macOS leaves ._a.jpg beside a.jpg where the disk has no place for attributes.
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.is_dir():
            others["linked folder"] += path.is_symlink()
        elif path.suffix.lower() in images.SUFFIXES:
            found.append(path)
        else:
            others[path.suffix or "no ending"] += 1
    if others := +others:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        logger.info("%s: passed over what has no image file's ending: %s", folder, counts)
    return found


def open_image(image: ImageLike) -> Image.Image:
    """Open an image by the rule of the pipeline: upright, RGB, bytes of a known format alone.

    Raises:
        UnreadableImageError: a file that is missing or no whole image, an array of another form, or something else.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in _CHANNELS or not image.size:
            raise UnreadableImageError(
                "an array must be uint8 [H, W, 3], [H, W, 4] or [H, W], one image each, but is "
                f"{image.dtype} {list(image.shape)}"
            )
        return Image.fromarray(image).convert("RGB")
    if isinstance(image, Image.Image):
        return images.upright_rgb(image)
    if not isinstance(image, (str, os.PathLike)):
        raise UnreadableImageError(f"an image must be a path, a PIL image or an array, but is {type(image).__name__}")
    try:
        if Path(image).is_fifo():
            raise UnreadableImageError(f"{os.fspath(image)}: is a pipe, not a file")
        data = Path(image).read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"{os.fspath(image)}: cannot be read ({error.strerror})") from None
    return images.decode(data, os.fspath(image), MAX_PIXELS)


def batches(
    sources: Sequence[T], opened: Callable[[T], Image.Image], size: int, batch_size: int, workers: int
) -> Iterator[list[tuple[T, Read]]]:
    """Decode and resize images in threads, a few batches ahead.

    Args:
        sources: N things that name images.
        opened: opens one; called in a thread.
        size: S, pixels.
        batch_size: images a batch.
        workers: threads.

    Returns:
        Each source of a batch with its pixels, uint8 [3, S, S], or with what was wrong; in their order.
    """

    def read(source: T) -> tuple[T, Read]:
        try:
            return source, preprocessing.resize(opened(source), size)
        except UnreadableImageError as error:
            return source, error

    parts = (sources[start : start + batch_size] for start in range(0, len(sources), batch_size))
    return ahead(parts, read, workers)
