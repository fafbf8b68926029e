"""Images that the benchmarks draw for themselves: JPEG files that cost about what photos do, and their table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clipdistill.datasets import images
from clipdistill.datasets.table import ImageTable


def draw(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Draw shapes on a gradient under grain, so that a JPEG file costs about what a photo does."""
    corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    picture = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    for shape in range(12):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        half = rng.uniform(0.05, 0.25) * min(width, height)
        outline = pen.ellipse if shape % 2 else pen.rectangle
        outline((x - half, y - half, x + half, y + half), fill=tuple(rng.integers(0, 256, 3).tolist()))
    grain = rng.normal(0, 12, (height, width, 1))
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))


def draw_table(folder: Path, count: int, size: tuple[int, int], rng: np.random.Generator) -> ImageTable:
    """Write `count` JPEG files of (width, height) pixels, and their image table."""
    names = [f"{row:06d}.jpg" for row in range(count)]
    for name in names:
        draw(*size, rng).save(folder / name, quality=90)
    contents = [(folder / name).read_bytes() for name in names]
    widths, heights = (np.full(count, side, dtype=np.int32) for side in size)
    sizes = np.array([len(content) for content in contents], dtype=np.int64)
    hashes = [images.content_hash(content) for content in contents]
    return ImageTable(folder, names, names, widths, heights, sizes, hashes, size[0] * size[1])
