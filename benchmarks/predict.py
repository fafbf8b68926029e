"""How long `clipdistill predict` takes to answer, and how much of the network's own speed it keeps on a folder.

    python benchmarks/predict.py
    python benchmarks/predict.py --backbone resnet18 --image-size 80 --images 400

Cold start: the command in a process of its own, on one image, from start to exit; and, in another such process, what
of it is importing, loading the student, and the first image. On a folder, two ways take turns:

  folder         what the command does: files found, decoded and resized by threads, scored, written as CSV
  pure forward   as many images, ready in memory as normalised values: what is left once reading costs nothing

The student has random weights, which cost the same time as any; nothing is downloaded. Each way runs once before the
clock does. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipdistill import distributed
from clipdistill.application import console
from clipdistill.application.predict import Listed, predict_files
from clipdistill.application.student import BATCH, Student
from clipdistill.errors import ClipdistillError
from clipdistill.params import StudentParams
from clipdistill.students import classifier, model_folder, student_yaml
from drawn import draw
from script import refuse_too_small, report

CLASSES = 20

COMMAND = "from clipdistill.cli import main; main()"

PROBE = """
import json, sys, time
begin = time.perf_counter()
from clipdistill.application.student import Student
imported = time.perf_counter()
student = Student.load(sys.argv[1], "cpu")
loaded = time.perf_counter()
student.predict(sys.argv[2])
done = time.perf_counter()
print(json.dumps({"import_s": imported - begin, "load_s": loaded - imported, "first_image_s": done - loaded}))
"""


def make_student(folder: Path, backbone: str, image_size: int, seed: int) -> None:
    """Write a student with random weights."""
    params = StudentParams(backbone=backbone, image_size=image_size, output_stride=32)
    student = classifier.build(params, CLASSES, seed)
    names = [f"class {column}" for column in range(CLASSES)]
    model_folder.save(folder, student, student_yaml.Card.of(student, params, "sigmoid", names, {}))


def run_process(code: str, *arguments: str) -> tuple[float, str]:
    """Run Python code in a process of its own; returns seconds from start to exit, and what it printed.

    Raises:
        ClipdistillError: it failed.
    """
    begin = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=os.environ
    )
    if result.returncode:
        raise ClipdistillError(f"the measured process failed: {result.stderr}")
    return time.perf_counter() - begin, result.stdout


def cold_start(model: Path, image: Path, rounds: int) -> dict[str, float]:
    """Medians, seconds, after a round that fills the file system's cache."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        seconds, _ = run_process(COMMAND, "predict", str(model), str(image), "--format", "csv", "--quiet")
        parts = {"cold_start_s": seconds} | json.loads(run_process(PROBE, str(model), str(image))[1])
        for name, value in parts.items():
            found.setdefault(name, []).append(value)
    return {name: round(statistics.median(values[1:]), 3) for name, values in found.items()}


def throughput(model: Path, folder: Path, images: int, compute: distributed.Compute, rounds: int) -> dict[str, float]:
    """Images/s of both ways in turns, medians, and their ratio; after a round that warms up."""
    student = Student.load(model, "cpu")
    size, batch = student.image_size, min(BATCH, images)
    values = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode():
            for start in range(0, images, batch):
                student.network(values[: images - start])

    def whole() -> None:
        text = io.StringIO()
        predict_files(model, [str(folder)], text, "csv", Listed(top_k=1), compute)
        if len(text.getvalue().splitlines()) != images + 1:
            raise ClipdistillError("the folder was not scored image by image: the two ways did not do the same work")

    def rate(way: Callable[[], None]) -> float:
        begin = time.perf_counter()
        way()
        return images / (time.perf_counter() - begin)

    pairs = [(rate(whole), rate(forward)) for _ in range(rounds + 1)][1:]
    return {
        "images_per_s": round(statistics.median(pair[0] for pair in pairs), 2),
        "forward_images_per_s": round(statistics.median(pair[1] for pair in pairs), 2),
        "share_of_forward": round(statistics.median(pair[0] / pair[1] for pair in pairs), 4),
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table for people, and return what the last line says."""
    console.set_up(quiet=True, verbose=False)
    torch.set_num_threads(options.threads)
    compute = distributed.Compute(device="cpu", threads=options.threads, workers=options.threads)
    os.environ |= {"CLIPDISTILL_DEVICE": "cpu", "CLIPDISTILL_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory() as name:
        model, folder = Path(name) / "model", Path(name) / "images"
        folder.mkdir()
        make_student(model, options.backbone, options.image_size, options.seed)
        rng = np.random.default_rng(options.seed)
        for row in range(options.images):
            draw(*options.size, rng).save(folder / f"{row:06d}.jpg", quality=90)
        result = cold_start(model, folder / "000000.jpg", options.rounds)
        result |= throughput(model, folder, options.images, compute, options.rounds)
    print(table_of(result, options))
    return {**result, **vars(options)}


def table_of(result: dict[str, float], options: argparse.Namespace) -> str:
    """Lay the results out as text."""
    return """\
{backbone} at {image_size} pixels, threads {threads}, {rounds} rounds; {images} images, JPEG {size[0]} x {size[1]}

cold start, one image {cold_start_s:>8.2f} s
  of it: importing    {import_s:>8.2f} s
         loading      {load_s:>8.2f} s
         first image  {first_image_s:>8.2f} s

folder                {images_per_s:>8.1f} images/s
pure forward          {forward_images_per_s:>8.1f} images/s
share of forward      {share_of_forward:>8.1%}
""".format(**result, **vars(options))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ParamsError: a number is too small.
    """
    parser = argparse.ArgumentParser(description="clipdistill predict: cold start and speed on a folder")
    parser.add_argument("--backbone", default="resnet50", help="torchvision's name")
    parser.add_argument("--image-size", type=int, default=224, help="side of the student's input, pixels")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), metavar=("WIDTH", "HEIGHT"), help="of images")
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up")
    parser.add_argument("--threads", type=int, default=distributed.cores(), help="of torch, and that decode")
    parser.add_argument("--seed", type=int, default=0)
    return refuse_too_small(parser.parse_args(arguments))


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return report(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
