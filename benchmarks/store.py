"""How embeddings are stored: Zarr shards and chunks of several sizes beside one .pt file an image, and DVC with each.

    python benchmarks/store.py [--images 20000] [--views 10] [--width 512] [--rounds 3]

One array, float16 [images x views, width] with rows of unit norm, is stored in every layout in turn, each round anew:

  one .pt an image     torch.save of [views, width], a file an image, as the published caches of CLIP's scores are kept
  one .npy             NumPy's file, mapped into memory where one image is read
  zarr, the project's  through clipdistill.work and clipdistill.store, with the shards of `embed`: written, hashed,
                       sealed with a manifest, and every byte checked by SHA-256 before the first is read
  zarr ... shards      the same codecs without the manifest, for other shards (rows) and chunks inside them (KiB)
  zarr no shards       a file for each chunk

A layout is written, read whole, read at random images (ms an image, the array being open), counted in bytes and files,
then hashed by `dvc add` and copied by `dvc push` to a remote in a local folder, in a git and DVC repository of its own.
DVC's start is in its seconds.

Files come from the page cache, so that a disk has hardly a share in the seconds. Medians over the rounds; random
directions compress less than embeddings of images do. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import layouts
from clipdistill import store
from clipdistill.errors import ClipdistillError
from clipdistill.work import WORK_ROOT_VARIABLE
from script import refuse_too_small, report

FIGURES = ("write_s", "read_s", "image_ms", "bytes", "files", "dvc_add_s", "dvc_push_s")
RANDOM_IMAGES = 100


class Repository:
    """Git and DVC repositories for one measurement each, made from one that is empty.

    Args:
        folder: empty; everything that DVC keeps, its caches of hashes too, lies in it.
    """

    def __init__(self, folder: Path) -> None:
        self._template, self._remote = folder / "template", folder / "remote"
        self._site = folder / "site"
        self._template.mkdir(parents=True)
        self._run(self._template, "git", "init", "--quiet")
        self._dvc(self._template, "init", "--quiet")
        # The links are the project's own; `dvc config` would start one more process for each line.
        (self._template / ".dvc" / "config").write_text(
            '[core]\n    remote = local\n    check_update = false\n[cache]\n    type = "reflink,hardlink,copy"\n'
            f"['remote \"local\"']\n    url = {self._remote}\n",
            encoding="utf-8",
        )

    def new(self, folder: Path) -> None:
        """Make a repository without data, and forget every hash and the remote of the one before."""
        for old in (folder, self._remote, self._site):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(self._template, folder)

    def add(self, folder: Path, name: str) -> None:
        """Hash and cache what stands under a name."""
        self._dvc(folder, "add", "--quiet", name)

    def push(self, folder: Path) -> None:
        """Copy the cache to the remote."""
        self._dvc(folder, "push", "--quiet")

    def _dvc(self, folder: Path, *arguments: str) -> None:
        self._run(folder, sys.executable, "-m", "dvc", *arguments)

    def _run(self, folder: Path, *command: str) -> None:
        environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(self._site)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClipdistillError(f"`{' '.join(command)}` failed ({done.returncode}): {done.stderr.strip()}")


def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that an action takes, and what it returns."""
    begin = time.perf_counter()
    result = action()
    return time.perf_counter() - begin, result


def once(
    layout: layouts.Layout, array: store.Array, views: int, repository: Repository, folder: Path
) -> dict[str, float]:
    """Store the array once, and take all figures.

    Args:
        layout: how.
        array: float16 [images x views, width].
        views: rows an image.
        repository: makes the DVC repository.
        folder: where it is made.

    Raises:
        ClipdistillError: what was read is not what was written, or DVC failed.
    """
    repository.new(folder)
    data = folder / "data"
    write, _ = seconds(lambda: layout.write(array, data))
    read, found = seconds(lambda: layout.open(data)(0, len(array)))
    if not np.array_equal(found, array):
        raise ClipdistillError(f"{data}: what was read is not what was written; no figure of this layout holds")
    rows = layout.open(data)
    starts = np.random.default_rng(0).integers(0, len(array) // views, RANDOM_IMAGES) * views
    image, _ = seconds(lambda: [rows(int(start), int(start) + views) for start in starts])
    sizes = [file.stat().st_size for file in data.rglob("*") if file.is_file()]
    add, _ = seconds(lambda: repository.add(folder, "data"))
    push, _ = seconds(lambda: repository.push(folder))
    values = (write, read, image / len(starts) * 1e3, sum(sizes), len(sizes), add, push)
    return dict(zip(FIGURES, values, strict=True))


def draw(images: int, views: int, width: int, seed: int) -> store.Array:
    """Random directions: float16 [images x views, width], rows of unit norm."""
    array = np.random.default_rng(seed).standard_normal((images * views, width), dtype=np.float32)
    array /= np.linalg.norm(array, axis=1, keepdims=True)
    return array.astype(np.float16)


def summary(measured: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds for each layout, and how many times the project's figures those of .pt files are."""
    median = {
        name: {figure: round(statistics.median(row[figure] for row in rows), 4) for figure in FIGURES}
        for name, rows in measured.items()
    }
    times = {
        figure: round(median[layouts.PUBLISHED][figure] / median[layouts.PROJECT][figure], 3) for figure in FIGURES
    }
    return {"layouts": median, "times_the_project": times}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table for people, and return what the last line says."""
    array = draw(options.images, options.views, options.width, options.seed)
    ways = layouts.every(options.images, options.views, options.shard_rows, options.chunk_kib)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as name:
        # Unfinished work lies beside its destination: sealing is a rename, as it is in the pipeline.
        os.environ[WORK_ROOT_VARIABLE] = str(Path(name) / "work")
        repository = Repository(Path(name) / "dvc")
        for _ in range(options.rounds):
            for layout_name, layout in ways.items():
                figures = once(layout, array, options.views, repository, Path(name) / "repository")
                measured[layout_name].append(figures)
    named = ("images", "views", "width", "rounds", "seed")
    result = summary(measured) | {key: getattr(options, key) for key in named} | {"raw_bytes": array.nbytes}
    print(table_of(result))
    return result


def table_of(result: dict[str, Any]) -> str:
    """Lay the results out as text."""
    heads = ("write s", "read s", "image ms", "MB", "files", "add s", "push s")
    lines = [
        "float16 [{images} x {views}, {width}], {raw:.1f} MB, {rounds} rounds".format(
            raw=result["raw_bytes"] / 1e6, **result
        ),
        "",
        f"{'layout':<38}" + "".join(f"{head:>10}" for head in heads),
    ]
    for name, row in result["layouts"].items():
        cells = [
            f"{row['bytes'] / 1e6:>10.1f}"
            if figure == "bytes"
            else f"{row[figure]:>10.0f}"
            if figure == "files"
            else f"{row[figure]:>10.2f}"
            for figure in FIGURES
        ]
        lines.append(f"{name:<38}" + "".join(cells))
    ratios = "".join(f"{result['times_the_project'][figure]:>10.2f}" for figure in FIGURES)
    return "\n".join([*lines, f"{f'{layouts.PUBLISHED}, times the project':<38}" + ratios, ""])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ParamsError: a number is too small.
    """
    parser = argparse.ArgumentParser(description="embeddings in files: Zarr layouts beside one .pt an image")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--views", type=int, default=10, help="rows an image")
    parser.add_argument("--width", type=int, default=512, help="of an embedding")
    parser.add_argument(
        "--shard-rows", type=int, nargs="+", default=[1_024, 4_096, 16_384, 65_536], help="and one shard"
    )
    parser.add_argument("--chunk-kib", type=int, nargs="+", default=[64, 256, 1_024], help="chunks, uncompressed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    return refuse_too_small(parser.parse_args(arguments))


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return report(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
