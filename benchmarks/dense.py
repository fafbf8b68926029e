"""The encoder's time for the cells of its own map, beside that for snippets of the same images.

    python benchmarks/dense.py [--images 64] [--size 128] [--grid 3] [--rounds 7]

Two ways take turns within each round, on one core, with the same weights (random: they cost the same time as any): an
image as one view of `--size` pixels whose cells are all embedded by one pass, and its grid x grid snippets at the
encoder's own side. Pixels are ready in memory: it is the encoder's time alone. Printed are milliseconds an image,
medians over the rounds after one that warms up, and the share. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch

from clipdistill.clip.encoder import ImageEncoder, default_batch
from image_tower import CPU, native_precision, random_teacher


def encoder_of(size: int | None) -> ImageEncoder:
    """The tiny CLIP's encoder: of cells at a size, or of views at its own."""
    model = random_teacher("scenes-tiny", 0)
    if size is not None:
        model = replace(model, preprocessing=replace(model.preprocessing, size=size))
    return ImageEncoder(model, native_precision(), CPU, None, cells=size is not None)


def seconds(encoder: ImageEncoder, views: int, size: int) -> float:
    """Time to embed so many views, in batches of the pipeline's own size."""
    batch = default_batch(size, CPU)
    parts = torch.split(torch.randint(0, 256, (views, size, size, 3), dtype=torch.uint8), batch)
    begin = time.perf_counter()
    for part in parts:
        encoder(part)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--grid", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    own = random_teacher("scenes-tiny", 0).preprocessing.size
    cells, snippets = encoder_of(options.size), encoder_of(None)
    times: dict[str, list[float]] = {"dense": [], "snippets": []}
    for turn in range(options.rounds + 1):
        found = {
            "dense": seconds(cells, options.images, options.size),
            "snippets": seconds(snippets, options.images * options.grid**2, own),
        }
        if turn:
            for name, value in found.items():
                times[name].append(1000 * value / options.images)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:<10} {value:8.2f} ms an image (from {min(times[name]):.2f} to {max(times[name]):.2f})")
    share = statistics.median(a / b for a, b in zip(times["dense"], times["snippets"], strict=True))
    print(json.dumps({"dense_ms": medians["dense"], "snippets_ms": medians["snippets"], "share": round(share, 4)}))


if __name__ == "__main__":
    main()
