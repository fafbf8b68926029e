"""From JPEG files to the pixels of views: which decoder, which resize, how far from Pillow's, at what share of CLIP.

    python benchmarks/decode.py [--images 6] [--rounds 25] [--models ViT-B-32 RN50] [--encoder-ms MS MS]

All of it runs on one thread, as a process of the pipeline does on a processor, and takes turns within each round.
What is timed is that thread, not the clock on the wall: others on the machine then cost little. Times are medians.

  decode    a file's bytes to RGB, by each decoder that is installed, in two sizes
  resize    bicubic, to the encoder's square: the whole image, and the cells of a 3 x 3 grid
  path      an image to its ten views, one global and nine snippets, through each decoder with each resize
  rest      what else an image passes: the file read and hashed, its views stacked, joined to a batch, normalised
  encoder   ms a view of each model in bf16, with random weights; --encoder-ms gives those of another machine

"Pillow" is the project's own (images.decode, ViewTransform) and the reference of every difference: it is what open_clip
evaluates its models with. Its draft mode shrinks while decoding: it helps a whole image of twice the square or more,
and takes from snippets what they would be enlarged from. The project stacks and normalises with the channels last, in
place; channels first and a new tensor for each operation give the same values.

Images are drawn, with grain, and saved at quality 90. Where there is a CUDA device, nvJPEG and the resize there are
measured too. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

import pixel_tables
import pixel_ways
from clipdistill.clip.preprocessing import Preprocessing
from clipdistill.errors import ParamsError
from clipdistill.params import SnippetViewParams
from pixel_tables import Table
from script import refuse_too_small, report

SIZES = ((500, 375), (640, 480))
ENCODER = "encoder, ms a view"


def tables(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Table], dict[str, str]]:
    """All that is measured, by table; and what is left out, with the reason."""
    preprocessing = Preprocessing(
        options.side, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, "bicubic", "shortest"
    )
    benches = {
        f"{width} x {height}": pixel_tables.build(
            folder / f"{width}x{height}", options.images, (width, height), preprocessing, options.seed
        )
        for width, height in options.sizes
    }
    bench = next(iter(benches.values()))
    decoders, no_decoder = pixel_ways.decoders()
    resizes, no_resize = pixel_ways.resizes(preprocessing)
    skipped = no_decoder | no_resize
    found = {f"decode, {size}": pixel_tables.decode_table(of_size, decoders) for size, of_size in benches.items()}
    found["resize, a snippet"] = pixel_tables.resize_table(bench, resizes, bench.boxes[1:])
    found["resize, the whole"] = pixel_tables.resize_table(bench, resizes, bench.boxes[:1])
    found["path"] = pixel_tables.path_table(bench, decoders, resizes)
    found["rest"] = pixel_tables.rest_table(bench)
    if not options.encoder_ms:
        found[ENCODER] = pixel_tables.encoder_table(options.models, options.side, options.seed)
    if torch.cuda.is_available():
        on_device, no_device = pixel_ways.device_decoders()
        found |= pixel_tables.device_tables(bench, on_device)
        skipped |= no_device
    else:
        skipped["GPU"] = "no GPU here"
    return found, skipped


def measure(found: dict[str, Table], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Let all ways take turns for `rounds` rounds, after one that warms up; ms an item in each."""
    times: dict[str, dict[str, list[float]]] = {
        title: {name: [] for name in table.ways} for title, table in found.items()
    }
    for _ in range(rounds + 1):
        for title, table in found.items():
            for name, way in table.ways.items():
                begin = table.clock()
                way.run()
                times[title][name].append((table.clock() - begin) / way.count * 1e3)
    return {title: {name: taken[1:] for name, taken in named.items()} for title, named in times.items()}


def summary(
    times: dict[str, dict[str, list[float]]], encoder_ms: dict[str, float], views_an_image: int
) -> dict[str, Any]:
    """Medians over the rounds, and each path as a share of the encoder's time for the same views.

    Args:
        times: of `measure`.
        encoder_ms: ms a view of each model, from another machine; empty: those measured.
        views_an_image: of a path.
    """
    ms = {
        title: {name: round(statistics.median(taken), 4) for name, taken in named.items()}
        for title, named in times.items()
    }
    encoder = encoder_ms or ms[ENCODER]
    share = {
        name: {model: round(path / (views_an_image * a_view), 4) for model, a_view in encoder.items()}
        for name, path in ms["path"].items()
    }
    return {"ms": ms, "encoder_ms_a_view": encoder, "share_of_encoder": share}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the tables for people, and return what the last line says."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found, skipped = tables(options, Path(name))
        difference = {title: table.differences() for title, table in found.items() if table.reference is not None}
        times = measure(found, options.rounds)
    given = dict(zip(options.models, options.encoder_ms, strict=True)) if options.encoder_ms else {}
    views_an_image = 1 + SnippetViewParams().grid ** 2
    settings = {key: getattr(options, key) for key in ("images", "sizes", "side", "rounds", "seed")}
    result = summary(times, given, views_an_image) | {"difference": difference, "skipped": skipped} | settings
    print(text_of(result))
    return result


def text_of(result: dict[str, Any]) -> str:
    """Lay the results out as text."""
    models = list(result["encoder_ms_a_view"])
    lines = ["{images} images a size, {rounds} rounds, one thread; views of {side} pixels".format(**result)]
    lines += [f"left out: {name} ({why})" for name, why in result["skipped"].items()]
    for title, named in result["ms"].items():
        shares = [f"% {model}" for model in models] if title == "path" else []
        heads = ["ms", *shares] + (["max diff", "% pixels"] if title in result["difference"] else [])
        lines += ["", f"{title:<46}" + "".join(f"{head:>14}" for head in heads)]
        for name, ms in named.items():
            cells = [f"{ms:.3f}"]
            cells += [f"{100 * result['share_of_encoder'][name][model]:.2f}" for model in models if shares]
            if gap := result["difference"].get(title, {}).get(name):
                cells += [f"{gap['max_difference']}", f"{100 * gap['differing_pixels']:.2f}"]
            lines.append(f"{name:<46}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join([*lines, ""])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ParamsError: a number is too small, or --encoder-ms has not one for each model.
    """
    parser = argparse.ArgumentParser(description="decoders and resizes beside Pillow's, and beside CLIP's encoders")
    parser.add_argument("--images", type=int, default=6, help="of each size")
    parser.add_argument("--size", type=int, nargs=2, action="append", dest="sizes", metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--side", type=int, default=224, help="of the encoder's square")
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "RN50"], help="that open_clip knows")
    parser.add_argument("--encoder-ms", type=float, nargs="+", default=[], help="ms a view of each, in place of timing")
    parser.add_argument("--rounds", type=int, default=25, help="after one that warms up")
    parser.add_argument("--seed", type=int, default=0)
    options = refuse_too_small(parser.parse_args(arguments))
    options.sizes = list(dict.fromkeys(map(tuple, options.sizes or SIZES)))
    if np.min(options.sizes) < SnippetViewParams().grid or min(options.encoder_ms, default=1) <= 0:
        raise ParamsError("--size, --encoder-ms: a side below 3 pixels, or no time at all")
    if options.encoder_ms and len(options.encoder_ms) != len(options.models):
        raise ParamsError(f"--encoder-ms: {len(options.encoder_ms)} numbers for {len(options.models)} models")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return report(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
