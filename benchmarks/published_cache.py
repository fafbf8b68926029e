"""CDUL's pseudo-labels on published CLIP scores, measured beside the figures of the paper and its study.

    python benchmarks/published_cache.py voc12_clip_rn50x64.npz [--json]

The file holds what CLIP RN50x64 said of the 5,717 images of PASCAL VOC 2012 train, from the cache of the
reproducibility study (cs-mshah/CDUL, Apache-2.0): scores of the whole image, and the highest and lowest of
its 3 x 3 snippets. Every figure goes through the project's own functions. Takes seconds on a CPU; the last
line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clipdistill.errors import ClipdistillError, DataError
from clipdistill.evaluation.metrics import mean_average_precision
from clipdistill.methods import cdul

ARRAYS = (
    "global",
    "alpha",
    "beta",
    "global_cos_centred",
    "labels",
    "labels_nodifficult",
    "temperature_used",
    "agg_thresholds",
)
STUDY_THRESHOLD = 0.5  # the study's zeta: arXiv 2405.11574, section 4.3
SOURCES = """\
mAP in percent; incl: difficult objects count as present, excl: as absent.
Paper: CDUL, arXiv 2307.16634, table 3, as the study quotes it.
Study: arXiv 2405.11574, table 2, with difficult objects present. It also prints 85.47 for 3 x 3 snippets at
zeta 0.5, which no row here reproduces."""

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of pseudo-label.

    Attributes:
        label: what it is.
        incl: mAP in percent, difficult objects counted as present.
        excl: mAP in percent, difficult objects counted as absent.
        paper: figure of the original paper, None where it has none.
        study: figure of the reproducibility study, None where it has none.
    """

    label: str
    incl: float
    excl: float
    paper: float | None = None
    study: float | None = None


def load(path: Path) -> Arrays:
    """Read the arrays of the published cache.

    Raises:
        DataError: the file is missing, is not an .npz file, or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in ARRAYS if name not in archive.files]
            arrays = {name: archive[name] for name in ARRAYS if name not in missing}
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}); give the path of voc12_clip_rn50x64.npz") from None
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        raise DataError(f"{path} is not a whole .npz file of plain arrays; fetch it again") from None
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: it is not the published cache of CLIP scores")
    shapes = {arrays[name].shape for name in ARRAYS[:6]}
    if len(shapes) > 1:
        raise DataError(f"{path}: scores and labels differ in shape ({sorted(shapes)}); fetch it again")
    return arrays


def rows(arrays: Arrays) -> list[Row]:
    """Measure the mAP of every combination that the cache allows."""
    whole, alpha, beta = (torch.from_numpy(arrays[name]) for name in ("global", "alpha", "beta"))

    def final(threshold: float) -> torch.Tensor:
        return cdul.final_similarity(whole, cdul.aggregate(alpha, beta, threshold))

    rescaled = cdul.scores(torch.from_numpy(arrays["global_cos_centred"]))
    kinds: list[tuple[str, torch.Tensor, dict[str, float]]] = [
        ("global, as stored", whole, {"study": 85.9}),
        ("alpha only", cdul.aggregate(alpha, beta, 0.0), {}),
        ("final, zeta 0", final(0.0), {"paper": 90.3}),
        ("final, zeta 0.05", final(0.05), {}),
        ("final, any zeta >= 0.1", final(0.1), {}),
        ("global, temperature 1/100", rescaled, {"paper": 85.3}),
    ]
    truths = arrays["labels"], arrays["labels_nodifficult"]
    return [
        Row(name, *(round(mean_average_precision(labels, truth)[0], 4) for truth in truths), **published)
        for name, labels, published in kinds
    ]


def gamma_shares(arrays: Arrays) -> dict[str, float]:
    """Share of the entries whose maximum reaches zeta: the stored thresholds, 0.05 and the study's own."""
    alpha = torch.from_numpy(arrays["alpha"])
    thresholds = sorted({*np.round(arrays["agg_thresholds"], 6).tolist(), 0.05, STUDY_THRESHOLD})
    return {f"{threshold:g}": float(cdul.gamma(alpha, threshold).double().mean()) for threshold in thresholds}


def measure(arrays: Arrays) -> dict[str, Any]:
    """Everything that is printed, as JSON values."""
    images, classes = arrays["global"].shape
    return {
        "images": images,
        "classes": classes,
        "temperature": float(arrays["temperature_used"]),
        "alpha": [float(arrays["alpha"].min()), float(arrays["alpha"].max())],
        "gamma": gamma_shares(arrays),
        "rows": [asdict(row) for row in rows(arrays)],
    }


def table(result: dict[str, Any]) -> str:
    """Lay the rows out as text."""
    columns = ("incl", "excl", "paper", "study")
    lines = [f"{'pseudo-label':28}" + "".join(f"{column:>8}" for column in columns)]
    for row in result["rows"]:
        figures = ("" if row[column] is None else f"{row[column]:.2f}" for column in columns)
        lines.append(f"{row['label']:28}" + "".join(f"{figure:>8}" for figure in figures))
    return "\n".join(line.rstrip() for line in lines)


def explanation(result: dict[str, Any]) -> str:
    """Say, from the data, why the study saw no gain from the snippets."""
    excl = {row["label"]: row["excl"] for row in result["rows"]}
    whole, best, worst = (excl[name] for name in ("global, as stored", "final, zeta 0", "final, any zeta >= 0.1"))
    low, high = result["alpha"]
    classes = result["classes"]
    shares = ", ".join(f"{100 * share:.1f} % at {zeta}" for zeta, share in result["gamma"].items())
    sentences = (
        f"Why the study could see no gain: it divided the cosines by {result['temperature']:.3f}, the logarithm of",
        "CLIP's scale, where the paper divides by the temperature, 1/100. So the scores of all classes lie",
        f"close to 1/{classes}: alpha, the maximum of the snippets, runs from {low:.4f} to {high:.4f}.",
        f"Share of the entries whose alpha reaches zeta: {shares}. The study used {STUDY_THRESHOLD:g}.",
        "Where no alpha reaches zeta, the aggregate is the minimum of the snippets, and the final labels",
        f"have {worst:.2f} (excl), {worst - whole:+.2f} against the global ones. At zeta 0 it is the maximum:",
        f"{best:.2f}, {best - whole:+.2f}. The rows that stand beside the paper's two figures have different",
        "temperatures, so they support the paper without proving it: the file keeps only the extremes of the",
        "snippets, and their scores at 1/100 cannot be recovered from them.",
    )
    return textwrap.fill(" ".join(sentences), 110)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description="CDUL's pseudo-labels on the published CLIP scores of VOC 2012 train")
    parser.add_argument("path", type=Path, help="voc12_clip_rn50x64.npz")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    options = parser.parse_args(arguments)
    try:
        arrays = load(options.path)
        try:
            result = measure(arrays)
        except ValueError as error:
            raise DataError(f"{options.path}: {error}; fetch it again") from None
    except ClipdistillError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if not options.json:
        print(f"{result['images']} images, {result['classes']} classes\n")
        print(table(result), SOURCES, explanation(result), sep="\n\n", end="\n\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
