"""Images on their way to a student: which files a person means, and their pixels, decoded ahead of the network."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipdistill.datasets import images
from clipdistill.datasets.images import UnreadableImageError
from clipdistill.params import DatasetParams
from clipdistill.students import preprocessing
from clipdistill.students.preprocessing import Pixels

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]"
"""A path, a PIL image, or an array of bytes: [H, W, 3] in the order R, G, B, or [H, W] gray."""

T = TypeVar("T")
Read: TypeAlias = "Pixels | UnreadableImageError"

# Batches that are decoded while the network works on the one before.
_AHEAD = 3

MAX_PIXELS: int = DatasetParams.model_fields["max_pixels"].default


def named_files(names: Sequence[str]) -> tuple[list[Path], list[UnreadableImageError]]:
    """Find the image files that a person names.

    Args:
        names: files; folders, searched to any depth for files with the usual endings; patterns with *, ?, [] and **
            (which a shell mostly resolves itself).

    Returns:
        Paths in the order of the names, those of a folder or a pattern sorted, none twice; and a problem for each name
        that stands for no file. A name that exists is never taken for a pattern.
    """
    found: dict[Path, None] = {}
    problems = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in images.SUFFIXES)
            why = f"the folder holds no image file ({', '.join(sorted(images.SUFFIXES))})"
        elif path.exists() or not glob.has_magic(name):
            files, why = [path] if path.is_file() else [], "there is no such file"
        else:
            matches = (Path(match) for match in sorted(glob.glob(name, recursive=True)))  # noqa: PTH207 - takes absolute ones
            files, why = [match for match in matches if match.is_file()], "no file matches"
        if not files:
            problems.append(UnreadableImageError(f"{name}: {why}"))
        found |= dict.fromkeys(files)
    return list(found), problems


def open_image(image: ImageLike) -> Image.Image:
    """Open an image by the rule of the pipeline: upright, RGB, bytes of a known format alone.

    Raises:
        UnreadableImageError: a file that is missing or no whole image, or an array of another form.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
            raise UnreadableImageError(
                f"an array must be uint8 [H, W, 3] or [H, W], but is {image.dtype} {list(image.shape)}"
            )
        return Image.fromarray(image).convert("RGB")
    if isinstance(image, Image.Image):
        return images.upright_rgb(image)
    try:
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

    Yields:
        Each source of a batch with its pixels, uint8 [3, S, S], or with what was wrong; in their order.
    """

    def read(source: T) -> Read:
        try:
            return preprocessing.resize(opened(source), size)
        except UnreadableImageError as error:
            return error

    pool = ThreadPoolExecutor(workers)
    waiting: deque[list[tuple[T, Future[Read]]]] = deque()
    try:
        for start in range(0, len(sources), batch_size):
            waiting.append([(source, pool.submit(read, source)) for source in sources[start : start + batch_size]])
            if len(waiting) > _AHEAD:
                yield _read(waiting.popleft())
        while waiting:
            yield _read(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _read(batch: list[tuple[T, Future[Read]]]) -> list[tuple[T, Read]]:
    return [(source, future.result()) for source, future in batch]
