"""Cosines and CDUL's labels at COCO's size: seconds and peak memory, beside the bare arithmetic and bytes.

    python benchmarks/labels.py [--images 82081] [--snippets 9] [--classes 80] [--width 512] [--rounds 3]

Artifacts of random embeddings (float16) are made in a temporary folder, as large as COCO 2014's by default. Four ways
take turns within each round, each in a process of its own, so that its peak memory is its own:

  similarity     embeddings on disk to cosines on disk, as the stage of that name goes: every byte that is read is
                 compared with its manifest, what is written is compressed and gets a manifest
  bare product   raw rows read, normalised, multiplied by the classes, and written raw: no checksum, no codec, no index
  labels         cosines on disk to CDUL's labels on disk, as the stage pseudo_label@cdul goes before its report
  bare labels    raw cosines read, softmax, maximum and minimum of each image, and labels written raw

A fifth process imports and does no more: the memory that it takes is part of every other's. The files lie in the page
cache, for all ways alike. Where other processes want the same cores, the ratio of processor seconds says more than that
of seconds, and with --threads 1 none of them are spent in waiting. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from clipdistill import store
from clipdistill.clip.similarity import write_similarity
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ClipdistillError
from clipdistill.layout import Blocks
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.training import pseudo_label
from script import refuse_too_small, report

DATASET = Params().dataset.name
TEACHER = {"model": "random", "weights": "random", "quick_gelu": False, "logit_scale": 100.0}
_ROWS = 8_192


@dataclass(frozen=True, slots=True)
class Bench:
    """What all ways have in common; each is called within the folder, and finds there what it reads.

    Attributes:
        folder: of all files.
        images: N.
        snippets: views an image beside the whole one.
        classes: C.
        width: D.
        threads: of torch.
    """

    folder: Path
    images: int
    snippets: int
    classes: int
    width: int
    threads: int

    @property
    def paths(self) -> Paths:
        """Where artifacts lie."""
        return Paths(DATASET)

    def table(self) -> ImageTable:
        """Image table of files that nobody opens."""
        names = [f"{row:09d}.jpg" for row in range(self.images)]
        sides, sizes = np.ones(self.images, np.int32), np.ones(self.images, np.int64)
        return ImageTable(Path("images"), names, names, sides, sides, sizes, names, 1)

    def make(self) -> None:
        """Write embeddings, as artifacts and raw."""
        rng = np.random.default_rng(0)
        text = rng.standard_normal((self.classes, self.width), dtype=np.float32)
        text /= np.linalg.norm(text, axis=1, keepdims=True)
        store.write_group(self.paths.text, {"embedding": text}, TEACHER)
        np.save("text.npy", text)
        table = self.table().fingerprint
        for kind, per_image in (("global", 1), ("snippets", self.snippets)):
            shape = (self.images * per_image, self.width)
            offset = np.arange(self.images + 1) * per_image
            with Path(f"{kind}.raw").open("wb") as raw:
                arrays = {"embedding": Blocks(shape, "float16", self._made(shape, raw)), "offset": offset}
                store.write_group(self.paths.embeddings("train", kind), arrays, {**TEACHER, "table": table})

    def _made(self, shape: tuple[int, int], raw: Any) -> Iterator[npt.NDArray[np.float16]]:  # noqa: ANN401 - a file
        """Rows of about unit norm; drawn once, then turned, which costs less than drawing and compresses as little."""
        drawn = np.random.default_rng(1).standard_normal((_ROWS, shape[1]), dtype=np.float32) / np.sqrt(shape[1])
        for turn, start in enumerate(range(0, shape[0], _ROWS)):
            rows = np.roll(drawn, turn, axis=1)[: shape[0] - start].astype(np.float16)
            raw.write(rows)
            yield rows

    def imports(self) -> None:
        """Nothing, after what every way imports."""

    def similarity(self) -> None:
        """The stage's way from embeddings to cosines."""
        views = (self.paths.embeddings("train", kind) for kind in ("global", "snippets"))
        write_similarity(self.paths.text, *views, self.table(), self.paths.similarity("train"))

    def labels(self) -> None:
        """The stage's way from cosines to CDUL's labels."""
        found = pseudo_label.labels_of("cdul", self.paths, self.table(), Params())
        store.write_group(self.paths.labels("cdul"), {"labels": found.final.numpy()}, found.provenance)

    def bare_product(self) -> None:
        """Raw float16 [V, D] to raw float32 [V, C]."""
        text = torch.from_numpy(np.load("text.npy"))
        for kind in ("global", "snippets"):
            with Path(f"cosines-{kind}.raw").open("wb") as out:
                for rows in _raw(Path(f"{kind}.raw"), np.float16, _ROWS, self.width):
                    out.write((F.normalize(rows.float(), dim=-1) @ text.T).numpy())

    def bare_labels(self) -> None:
        """Raw cosines of global and snippets to raw labels [N, C], with the default threshold and weight of CDUL."""
        images = max(1, _ROWS // self.snippets)
        blocks = (
            _raw(Path(f"cosines-{kind}.raw"), np.float32, images * views, self.classes)
            for kind, views in (("global", 1), ("snippets", self.snippets))
        )
        with Path("labels.raw").open("wb") as out:
            for whole, views in zip(*blocks, strict=True):
                scores = torch.softmax(views * TEACHER["logit_scale"], dim=-1)
                scores = scores.reshape(len(whole), self.snippets, self.classes)
                highest, lowest = scores.amax(dim=1), scores.amin(dim=1)
                aggregate = torch.where(highest >= Params().pseudo_label.cdul.threshold, highest, lowest)
                out.write(((torch.softmax(whole * TEACHER["logit_scale"], dim=-1) + aggregate) / 2).numpy())


def _raw(path: Path, dtype: type[np.floating[Any]], rows: int, width: int) -> Iterator[torch.Tensor]:
    """Blocks [rows or fewer, width] of a raw file."""
    with path.open("rb") as stream:
        while len(block := np.fromfile(stream, dtype, rows * width)):
            yield torch.from_numpy(block.reshape(-1, width))


WAYS: dict[str, Callable[[Bench], None]] = {
    "imports": Bench.imports,
    "similarity": Bench.similarity,
    "bare product": Bench.bare_product,
    "labels": Bench.labels,
    "bare labels": Bench.bare_labels,
}


class Measured(NamedTuple):
    """What a way took: seconds, seconds of all processor cores, and the highest memory of its process in MB."""

    seconds: float
    processor_seconds: float
    peak_mb: float


def measured(way: Callable[[Bench], None], bench: Bench) -> Measured:
    """Run a way in this process."""
    os.chdir(bench.folder)
    torch.set_num_threads(bench.threads)
    begin, busy = time.perf_counter(), time.process_time()
    way(bench)
    took = time.perf_counter() - begin, time.process_time() - busy
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(*took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def apart(way: Callable[[Bench], None], bench: Bench) -> Measured:
    """Run a way in a process that has imported and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(measured, way, bench).result()


def measure(bench: Bench, rounds: int) -> dict[str, list[Measured]]:
    """Let the ways take turns; what each took in each round.

    Raises:
        ClipdistillError: the pipeline's labels are not the bare ones.
    """
    apart(Bench.make, bench)
    found: dict[str, list[Measured]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            found[name].append(apart(way, bench))
    require_same_labels(bench)
    return found


def require_same_labels(bench: Bench) -> None:
    """Refuse to compare ways that make different labels; those that differ by rounding are the same."""
    own = store.read_group(bench.folder / bench.paths.labels("cdul")).read("labels")
    bare = np.fromfile(bench.folder / "labels.raw", np.float32).reshape(own.shape)
    if (difference := float(np.abs(own - bare).max())) > 1e-4:
        raise ClipdistillError(f"the labels differ from the bare ones by up to {difference}: no speeds to compare")


def summary(found: dict[str, list[Measured]]) -> dict[str, float]:
    """Medians over the rounds, their ratios, and the highest memory."""
    took = {name: statistics.median(item.seconds for item in items) for name, items in found.items()}
    busy = {name: statistics.median(item.processor_seconds for item in items) for name, items in found.items()}
    peak = {name: round(max(item.peak_mb for item in items), 1) for name, items in found.items()}
    result = {"imports_peak_mb": peak["imports"]}
    for name, bare in (("similarity", "bare product"), ("labels", "bare labels")):
        result |= {
            f"{name}_s": round(took[name], 6),
            f"{name}_bare_s": round(took[bare], 6),
            f"{name}_times_bare": round(took[name] / took[bare], 3),
            f"{name}_processor_times_bare": round(busy[name] / busy[bare], 3),
            f"{name}_peak_mb": peak[name],
        }
    return result


def table_of(found: dict[str, list[Measured]], options: argparse.Namespace) -> str:
    """Lay the results out as text."""
    title = (
        f"{options.images} images, {options.images * options.snippets} snippets, {options.classes} classes, "
        f"width {options.width}, threads {options.threads}, {options.rounds} rounds"
    )
    head = f"{'way':<14}{'seconds':>9}{'range':>17}{'processor s':>13}{'peak MB':>9}"
    return "\n".join([title, "", head, *(_line(name, items) for name, items in found.items()), ""])


def _line(name: str, items: list[Measured]) -> str:
    seconds, busy, peak = zip(*items, strict=True)
    extent = f"{min(seconds):.2f} to {max(seconds):.2f}"
    return f"{name:<14}{statistics.median(seconds):>9.2f}{extent:>17}{statistics.median(busy):>13.2f}{max(peak):>9.0f}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ParamsError: a number is too small.
    """
    parser = argparse.ArgumentParser(description="cosines and CDUL's labels at COCO's size")
    parser.add_argument("--images", type=int, default=82_081, help="default: COCO 2014's that carry a label")
    parser.add_argument("--snippets", type=int, default=9, help="views an image beside the whole one")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--width", type=int, default=512, help="of the embeddings")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch; default: all cores")
    return refuse_too_small(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table for people, and return what the last line says."""
    settings = {key: value for key, value in vars(options).items() if key != "rounds"}
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Bench(Path(folder), **settings), options.rounds)
    print(table_of(found, options))
    return summary(found) | vars(options)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return report(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
