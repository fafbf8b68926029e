"""CLIP's answers on CAM views: the pipeline's batches beside one crop at a time, on the same images and boxes.

    python benchmarks/cam_views.py [--model ViT-B-32] [--precision bf16] [--images 60] [--rounds 3]

CCD (Kim and Shim, CVPR 2025) asks CLIP about crops at the boxes where the student's activation maps point. Three ways
take turns within each round, in one process on the processor, with the same model, precision and threads:

  batched        JPEG files to a sealed artifact, as the stage embed@cam goes: an image is decoded once, by a thread of
                 its own, and batches are full whatever the number of views an image has
  one at a time  for each box: open the file, crop, resize, one forward of batch 1; kept in memory, nothing written
  pure forward   the same batches, ready in memory, a core each as `batched` has them: what is left once reading and
                 writing cost nothing

The model has random weights, which cost the same time as any; nothing is downloaded. Each way runs once before the
clock does. With fewer threads than cores, the decoding thread of `batched` has a core of its own, so the default,
all cores, is the even comparison. Opening an artifact's work folder costs the same for few views as for
many: a small run weighs it too heavily. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipdistill import store
from clipdistill.clip import embed, teacher
from clipdistill.clip.encoder import Embeddings, ImageEncoder
from clipdistill.clip.pixels import ViewSource
from clipdistill.clip.preprocessing import ViewTransform
from clipdistill.clip.views import ViewTable
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ClipdistillError, ParamsError
from clipdistill.work import WORK_ROOT_VARIABLE
from drawn import draw_table
from image_tower import (
    CPU,
    LOWEST_COSINE,
    cosines,
    forward_in_lanes,
    native_precision,
    random_teacher,
    table_of_rates,
)
from script import refuse_too_small, report


def draw_views(table: ImageTable, mean: int, rng: np.random.Generator) -> ViewTable:
    """Draw 0 to 2 x `mean` boxes an image, with sides of a fifth to the whole of the image's.

    Raises:
        ParamsError: chance gave no image a box.
    """
    counts = rng.integers(0, 2 * mean, len(table), endpoint=True)
    offset = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if not offset[-1]:
        raise ParamsError("--images: no image was given a box; take more images or another --seed")
    side = np.repeat(np.stack([table.widths, table.heights], axis=1), counts, axis=0)
    length = rng.uniform(0.2, 1.0, side.shape) * side
    start = rng.uniform(0.0, 1.0, side.shape) * (side - length)
    return ViewTable(np.concatenate([start, start + length], axis=1).astype(np.float32), offset)


@dataclass(frozen=True, slots=True)
class Bench:
    """What the three ways have in common.

    Attributes:
        clip: in fp32, as it comes from the loader.
        cast: the same weights in the precision of the benchmark.
        encoder: on `cast`.
        transform: box to pixels.
        table: N images.
        views: V views of them.
        batch: views a forward pass.
        lanes: batches side by side, for `batched`.
        folder: empty, for artifacts.
    """

    clip: teacher.Teacher
    cast: teacher.Teacher
    encoder: ImageEncoder
    transform: ViewTransform
    table: ImageTable
    views: ViewTable
    batch: int
    lanes: int
    folder: Path

    def batched(self) -> Path:
        """The pipeline's way: from preparing the work folder to the sealed artifact."""
        work = embed.prepare("benchmark", self.clip, self.table, self.views, {"kind": "cam"})
        source = ViewSource(self.table, self.views, self.transform, threads=1)
        embed.fill(work, work.pending(), source, self.encoder, self.batch, self.lanes, lambda _count: None)
        out = Path(tempfile.mkdtemp(dir=self.folder)) / "cam.zarr"
        work.seal(out)
        work.discard()
        return out

    def one_at_a_time(self) -> Embeddings:
        """A file opened, a crop and a forward pass for each box; float16 [V, D]."""
        rows = []
        for image in range(len(self.table)):
            for view in range(self.views.offset[image], self.views.offset[image + 1]):
                pixels = self.transform(self.table.open(image), self.views.box[view : view + 1])
                rows.append(self.encoder(torch.from_numpy(pixels)))
        return np.concatenate(rows)

    def forward(self, ready: torch.Tensor) -> None:
        """As many views through the image tower, in batches of the same sizes; normalised values [batch, 3, S, S]."""
        batches = (ready[: len(self.views) - start] for start in range(0, len(self.views), self.batch))
        forward_in_lanes(self.encoder, self.cast, batches, self.lanes)


def measure(bench: Bench, rounds: int, seed: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Let the ways take turns for `rounds` rounds, after one that warms up.

    Returns:
        Views/s of each way in each round; and two cosines: the lowest between the embeddings of a view, batched and
        one at a time, and the median between a view and the next, which says how far the model tells views apart.

    Raises:
        ClipdistillError: the lowest cosine is not above 0.999.
    """
    size = bench.transform.size
    random = torch.randn(bench.batch, 3, size, size, generator=torch.Generator().manual_seed(seed))
    ready = random.to(next(bench.cast.model.visual.parameters()).dtype, memory_format=torch.channels_last)
    rates: dict[str, list[float]] = {"batched": [], "one at a time": [], "pure forward": []}
    lowest = 1.0

    def timed(name: str, way: Callable[[], Any]) -> Any:  # noqa: ANN401 - each way's own result
        begin = time.perf_counter()
        result = way()
        rates[name].append(len(bench.views) / (time.perf_counter() - begin))
        return result

    for _ in range(rounds + 1):
        artifact = timed("batched", bench.batched)
        single = timed("one at a time", bench.one_at_a_time)
        timed("pure forward", lambda: bench.forward(ready))
        group = store.read_group(artifact, {"table": bench.table.fingerprint})
        lowest = min(lowest, float(cosines(group.read("embedding"), single).min()))
        if not lowest > LOWEST_COSINE:
            raise ClipdistillError(
                f"batched and one at a time, the embeddings of a view have cosine {lowest:.6f}, not above "
                f"{LOWEST_COSINE}: the two ways do not embed the same thing, and their speeds cannot be compared"
            )
    neighbours = float(np.median(cosines(single, np.roll(single, 1, axis=0))))
    cosine = {"lowest_cosine": lowest, "neighbours_cosine": neighbours}
    return {name: found[1:] for name, found in rates.items()}, cosine


def summary(rates: dict[str, list[float]]) -> dict[str, float]:
    """Medians over the rounds, and their ratios."""
    batched, single, forward = (statistics.median(found) for found in rates.values())
    return {
        "views_per_s": round(batched, 3),
        "one_at_a_time_views_per_s": round(single, 3),
        "forward_views_per_s": round(forward, 3),
        "times_one_at_a_time": round(batched / single, 4),
        "share_of_forward": round(batched / forward, 4),
    }


def build(options: argparse.Namespace, folder: Path) -> Bench:
    """Build the model and draw images and boxes."""
    # One stream each: the boxes' number does not depend on what the images take.
    for_images, for_boxes = np.random.default_rng(options.seed).spawn(2)
    (folder / "images").mkdir()
    clip = random_teacher(options.model, options.seed)
    table = draw_table(folder / "images", options.images, options.size, for_images)
    views = draw_views(table, options.views, for_boxes)
    cast = replace(clip, model=copy.deepcopy(clip.model))
    encoder = ImageEncoder(cast, options.precision, CPU)
    transform = ViewTransform(clip.preprocessing, "squash")
    return Bench(clip, cast, encoder, transform, table, views, options.batch, options.threads, folder)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table for people, and return what the last line says."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        # Unfinished work lies beside its destination: sealing is a rename, as it is in the pipeline.
        os.environ[WORK_ROOT_VARIABLE] = str(Path(name) / "work")
        bench = build(options, Path(name))
        rates, cosine = measure(bench, options.rounds, options.seed)
    named = ("model", "precision", "threads", "batch", "images", "size", "rounds", "seed")
    settings = {key: getattr(options, key) for key in named} | {"views": len(bench.views)}
    result = summary(rates) | settings | cosine
    print(table_of(rates, result, bench.table.sizes.mean() / 1e3))
    return result


def table_of(rates: dict[str, list[float]], result: dict[str, Any], kilobytes: float) -> str:
    """Lay the results out as text."""
    return """\
{model}, {precision}, batch {batch}, threads {threads}, {rounds} rounds; \
{views} views of {images} images, JPEG {size[0]} x {size[1]}, {kilobytes:.0f} kB

{table}

Batched: {times_one_at_a_time:.2f} times one at a time, {share_of_forward:.1%} of the pure forward.
Lowest cosine between the two embeddings of a view: {lowest_cosine:.6f} \
(median between neighbouring views: {neighbours_cosine:.6f}).
""".format(table=table_of_rates(rates), kilobytes=kilobytes, **result)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ParamsError: a number is too small.
    """
    native = native_precision()
    parser = argparse.ArgumentParser(description="CLIP on CAM views: full batches beside one crop at a time")
    parser.add_argument("--model", default="ViT-B-32", help="an architecture that open_clip knows, or scenes-tiny")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=native, help=f"default: {native}")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--views", type=int, default=4, help="mean number of boxes an image; 0 to twice as many")
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), metavar=("WIDTH", "HEIGHT"), help="of images")
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up")
    parser.add_argument("--batch", type=int, default=16, help="views a forward pass, but for one at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch; default: all cores")
    parser.add_argument("--seed", type=int, default=0)
    return refuse_too_small(parser.parse_args(arguments))


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return report(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
