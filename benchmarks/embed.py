"""From JPEG files to a Zarr array, beside the encoder alone and beside the published way, all in one run.

    python benchmarks/embed.py [--model ViT-B-32] [--images 100] [--rounds 5] [--memory 1000 4000]

Each image gives one global view and the cells of a 3 x 3 grid. Three ways take turns within each round, in one process
on the processor, with the same weights (random: they cost the same time as any, and nothing is downloaded):

  pipeline       as the stages embed@global and embed@snippets go: from JPEG files on disk to two sealed artifacts, the
                 work folder and the checksums included
  pure forward   as many views, ready in memory as normalised values in the same precision, through the image tower
                 and nothing else: in lanes (a batch a core, as the pipeline does), and each batch on all cores;
                 the faster of the two counts
  published way  what the papers' codes do: fp32, image by image, the image and its tiles as one batch, one .pt file
                 an image. It runs on a share of the images; rates are compared

The rates are views a second, medians over the rounds after one that warms up. Then, if asked for, the peak memory of
embedding few and many images, each in a process of its own. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clipdistill import distributed, store
from clipdistill.clip import embed, teacher, views
from clipdistill.clip.encoder import Embeddings, ImageEncoder, default_batch
from clipdistill.clip.pixels import ViewSource
from clipdistill.clip.preprocessing import ViewTransform, normalise
from clipdistill.clip.views import ViewTable
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ClipdistillError
from clipdistill.params import SnippetViewParams
from clipdistill.work import WORK_ROOT_VARIABLE
from drawn import draw_table
from image_tower import (
    CPU,
    LOWEST_COSINE,
    cosines,
    forward,
    forward_in_lanes,
    native_precision,
    random_teacher,
    table_of_rates,
)
from script import refuse_too_small, report

PIPELINE, LANES, CORES, PUBLISHED = "pipeline", "forward, lanes", "forward, cores", "published way"


@dataclass(frozen=True, slots=True)
class Bench:
    """What the ways have in common.

    Attributes:
        clip: in fp32.
        cast: the same weights in the precision of the benchmark.
        encoder: on `cast`.
        table: N images.
        kinds: view tables by name, with the transform of each.
        batch: views a forward pass.
        lanes: batches side by side.
        workers: decoding threads.
        published: images that the published way runs on.
        folder: empty, for artifacts.
    """

    clip: teacher.Teacher
    cast: teacher.Teacher
    encoder: ImageEncoder
    table: ImageTable
    kinds: dict[str, tuple[ViewTable, ViewTransform]]
    batch: int
    lanes: int
    workers: int
    published: int
    folder: Path

    @property
    def views(self) -> int:
        """Views of all images."""
        return sum(len(found) for found, _ in self.kinds.values())

    def pipeline(self) -> dict[str, Path]:
        """Files to sealed artifacts, one a kind of view."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        for kind, (boxes, transform) in self.kinds.items():
            work = embed.prepare(f"benchmark/{kind}", self.clip, self.table, boxes, {"kind": kind})
            source = ViewSource(self.table, boxes, transform, self.workers)
            embed.fill(work, work.pending(), source, self.encoder, self.batch, self.lanes, lambda _count: None)
            work.seal(place / f"{kind}.zarr")
            work.discard()
        return {kind: place / f"{kind}.zarr" for kind in self.kinds}

    def in_lanes(self, ready: list[torch.Tensor]) -> None:
        """Batches side by side, each on one core."""
        forward_in_lanes(self.encoder, self.cast, ready, self.lanes)

    def on_all_cores(self, ready: list[torch.Tensor]) -> None:
        """One batch after the other, each on all cores."""
        for batch in ready:
            forward(self.cast, batch)

    def published_way(self) -> Embeddings:
        """Image by image in fp32; float16 [published, 1 + R, D], and a file for each image."""
        place, rows = Path(tempfile.mkdtemp(dir=self.folder)), []
        for image in range(self.published):
            photo = self.table.open(image)
            cut = [
                transform(photo, boxes.box[boxes.offset[image] : boxes.offset[image + 1]])
                for boxes, transform in self.kinds.values()
            ]
            pixels = torch.from_numpy(np.concatenate(cut)).permute(0, 3, 1, 2).contiguous()
            with torch.inference_mode():
                values = normalise(pixels, self.clip.preprocessing)
                embedding = F.normalize(self.clip.model.encode_image(values), dim=-1)
            torch.save(embedding, place / f"{image:06d}.pt")
            rows.append(embedding.half().numpy())
        return np.stack(rows)


def ready_batches(bench: Bench, seed: int) -> list[torch.Tensor]:
    """Batches of noise like those of the pipeline: as many, of the same sizes, normalised, in its precision."""
    size = bench.clip.preprocessing.size
    noise = torch.randn(bench.batch, 3, size, size, generator=torch.Generator().manual_seed(seed))
    full = noise.to(next(bench.cast.model.visual.parameters()).dtype, memory_format=torch.channels_last)
    counts = [
        min(bench.batch, stop - low)
        for boxes, _ in bench.kinds.values()
        for start, stop in shard_ranges(boxes)
        for low in range(start, stop, bench.batch)
    ]
    return [full[:count] for count in counts]


def shard_ranges(boxes: ViewTable) -> list[tuple[int, int]]:
    """Rows of each shard: no batch crosses a border."""
    rows = embed.shard_rows(boxes)
    return [(start, min(start + rows, len(boxes))) for start in range(0, len(boxes), rows)]


def measure(bench: Bench, rounds: int, threads: int, seed: int) -> tuple[dict[str, list[float]], float]:
    """Let the ways take turns for `rounds` rounds, after one that warms up.

    Returns:
        Views/s of each way in each round, and the lowest cosine between a view's embedding in the pipeline's precision
        and in fp32.

    Raises:
        ClipdistillError: that cosine is not above 0.999.
    """
    ready = ready_batches(bench, seed)
    rates: dict[str, list[float]] = {PIPELINE: [], LANES: [], CORES: [], PUBLISHED: []}
    lowest = 1.0

    def timed(name: str, count: int, way: Callable[[], Any]) -> Any:  # noqa: ANN401 - each way's own result
        torch.set_num_threads(threads)
        begin = time.perf_counter()
        result = way()
        rates[name].append(count / (time.perf_counter() - begin))
        return result

    for _ in range(rounds + 1):
        artifacts = timed(PIPELINE, bench.views, bench.pipeline)
        timed(LANES, bench.views, lambda: bench.in_lanes(ready))
        timed(CORES, bench.views, lambda: bench.on_all_cores(ready))
        exact = timed(PUBLISHED, bench.published * bench.views // len(bench.table), bench.published_way)
        lowest = min(lowest, lowest_cosine(bench, artifacts, exact))
        if not lowest > LOWEST_COSINE:
            raise ClipdistillError(
                f"the pipeline's embedding of a view has cosine {lowest:.6f} to that in fp32, not above "
                f"{LOWEST_COSINE}: the two do not embed the same thing, and their speeds cannot be compared"
            )
    return {name: found[1:] for name, found in rates.items()}, lowest


def lowest_cosine(bench: Bench, artifacts: dict[str, Path], exact: Embeddings) -> float:
    """Lowest cosine between the pipeline's embeddings and fp32's, over the images that both have."""
    rows = []
    for kind, artifact in artifacts.items():
        offset = bench.kinds[kind][0].offset
        found = store.read_group(artifact).read("embedding", 0, int(offset[bench.published]))
        rows.append(found.reshape(bench.published, -1, found.shape[1]))
    fast = np.concatenate(rows, axis=1)
    return float(cosines(fast.reshape(-1, fast.shape[2]), exact.reshape(-1, exact.shape[2])).min())


def summary(rates: dict[str, list[float]]) -> dict[str, float]:
    """Medians over the rounds, and their ratios."""
    median = {name: statistics.median(found) for name, found in rates.items()}
    forward = max(median[LANES], median[CORES])
    return {
        "share_of_forward": round(median[PIPELINE] / forward, 4),
        "times_published_way": round(median[PIPELINE] / median[PUBLISHED], 4),
        "views_per_s": round(median[PIPELINE], 3),
        "forward_views_per_s": round(forward, 3),
        "forward_in_lanes_views_per_s": round(median[LANES], 3),
        "forward_on_all_cores_views_per_s": round(median[CORES], 3),
        "published_way_views_per_s": round(median[PUBLISHED], 3),
    }


def build(options: argparse.Namespace, folder: Path) -> Bench:
    """Build the model and draw the images."""
    (folder / "images").mkdir()
    clip = random_teacher(options.model, options.seed)
    table = draw_table(folder / "images", options.images, options.size, np.random.default_rng(options.seed))
    cast = replace(clip, model=copy.deepcopy(clip.model))
    kinds = {
        "global": (views.whole(table), ViewTransform(clip.preprocessing, "open_clip")),
        "snippets": (
            views.snippets(table, SnippetViewParams(grid=options.grid)),
            ViewTransform(clip.preprocessing, "squash"),
        ),
    }
    batch = options.batch or default_batch(clip.preprocessing.size, CPU)
    encoder = ImageEncoder(cast, options.precision, CPU)
    published = -(-options.images // options.published_share)
    workers = -(-options.threads // 2)
    return Bench(clip, cast, encoder, table, kinds, batch, options.threads, workers, published, folder)


def peak_memory(options: argparse.Namespace, images: int) -> dict[str, float]:
    """Resident memory of a process that embeds so many images, MB: `before_mb` it begins, `peak_mb` while it does."""
    named = {"--model": options.memory_model, "--precision": options.precision, "--threads": options.threads}
    words = [str(word) for pair in named.items() for word in pair] + ["--embed-only", str(images)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClipdistillError(f"embedding {images} images failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def embed_only(options: argparse.Namespace) -> dict[str, float]:
    """Embed `options.embed_only` images, which share 200 files, and say what memory that took."""
    files = min(200, options.embed_only)
    with tempfile.TemporaryDirectory() as name:
        os.environ[WORK_ROOT_VARIABLE] = str(Path(name) / "work")
        bench = build(argparse.Namespace(**{**vars(options), "images": files}), Path(name))
        bench = replace(bench, table=repeated(bench.table, options.embed_only))
        kinds = {
            "global": (views.whole(bench.table), bench.kinds["global"][1]),
            "snippets": (views.snippets(bench.table, SnippetViewParams(grid=options.grid)), bench.kinds["snippets"][1]),
        }
        bench = replace(bench, kinds=kinds)
        # What building the model took at its height is not the embedder's: Linux forgets the peak so far.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = resident("VmRSS")
        bench.pipeline()
    return {"before_mb": before, "peak_mb": resident("VmHWM")}


def resident(which: str) -> float:
    """Resident memory of this process, now (VmRSS) or at its height (VmHWM), MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(which))) / 1024


def repeated(table: ImageTable, count: int) -> ImageTable:
    """A table of `count` images whose rows go round the files of a smaller one."""
    rows = np.arange(count) % len(table)
    ids = [f"{row:08d}" for row in range(count)]
    paths, hashes = ([column[row] for row in rows] for column in (table.paths, table.hashes))
    sides = (column[rows] for column in (table.widths, table.heights, table.sizes))
    return ImageTable(table.root, ids, paths, *sides, hashes, table.max_pixels)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table for people, and return what the last line says."""
    if options.embed_only:
        return embed_only(options)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        # Unfinished work lies beside its destination: sealing is a rename, as it is in the pipeline.
        os.environ[WORK_ROOT_VARIABLE] = str(Path(name) / "work")
        bench = build(options, Path(name))
        rates, lowest = measure(bench, options.rounds, options.threads, options.seed)
        batch, kilobytes = bench.batch, bench.table.sizes.mean() / 1e3
    named = ("model", "precision", "threads", "images", "size", "rounds", "seed")
    settings = {key: getattr(options, key) for key in named} | {"batch": batch, "views": bench.views}
    result = summary(rates) | {"lowest_cosine": lowest} | settings
    print(table_of(rates, result, kilobytes))
    if options.memory:
        few, many = (peak_memory(options, images) for images in options.memory)
        for name in ("before_mb", "peak_mb"):
            result[name] = [round(few[name], 1), round(many[name], 1)]
        result |= {"memory_images": options.memory, "times_memory": round(many["peak_mb"] / few["peak_mb"], 4)}
        print(memory_line(result))
    return result


def memory_line(result: dict[str, Any]) -> str:
    """Say how much memory few and many images take."""
    return """\
Memory of {memory_images[0]} and of {memory_images[1]} images: {before_mb[0]:.0f} and {before_mb[1]:.0f} MB before \
the first, {peak_mb[0]:.0f} and {peak_mb[1]:.0f} MB at the height: {times_memory:.3f} times.""".format(**result)


def table_of(rates: dict[str, list[float]], result: dict[str, Any], kilobytes: float) -> str:
    """Lay the results out as text."""
    return """\
{model}, {precision}, batch {batch}, {threads} threads, {rounds} rounds; \
{views} views of {images} images, JPEG {size[0]} x {size[1]}, {kilobytes:.0f} kB

{table}

The pipeline: {share_of_forward:.1%} of the faster pure forward, {times_published_way:.2f} times the published way.
Lowest cosine of a view's embedding to that in fp32: {lowest_cosine:.6f}.""".format(
        table=table_of_rates(rates), kilobytes=kilobytes, **result
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ParamsError: a number is too small.
    """
    native = native_precision()
    parser = argparse.ArgumentParser(description="From JPEG files to a Zarr array, beside the encoder alone")
    parser.add_argument("--model", default="ViT-B-32", help="an architecture that open_clip knows, or scenes-tiny")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=native, help=f"default: {native}")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--grid", type=int, default=3, help="the snippets are grid x grid cells")
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), metavar=("WIDTH", "HEIGHT"), help="of images")
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--batch", type=int, help="views a forward pass; default: the pipeline's own")
    parser.add_argument("--threads", type=int, default=distributed.cores(), help="default: all cores")
    parser.add_argument("--published-share", type=int, default=5, help="the published way runs on one image in so many")
    parser.add_argument("--memory", type=int, nargs=2, metavar=("FEW", "MANY"), help="images to compare the memory of")
    parser.add_argument("--memory-model", default="scenes-tiny", help="for the comparison of memory")
    parser.add_argument("--embed-only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    return refuse_too_small(parser.parse_args(arguments))


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return report(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
