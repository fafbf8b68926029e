"""Raw layouts to the image table: every image is opened once, and every problem is counted.

Nothing is written before all images of both splits are checked.
"""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdistill.datasets import images, open_vocabulary, table
from clipdistill.datasets.raw import Problem, RawDataset, RawSplit, judge
from clipdistill.datasets.readers import read_raw
from clipdistill.datasets.table import SPLITS, ImageTable, Split
from clipdistill.errors import ParamsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipdistill.datasets.table import ClassName, Labels
    from clipdistill.params import DatasetParams

_LOGGED = 100

_log = logging.getLogger(__name__)


def format_dataset(params: DatasetParams, out: Path, workers: int) -> dict[str, Any]:
    """Read a raw data set, check every image, and write what all later stages read.

    Args:
        params: section `dataset`.
        out: folder; gets {train,val}/images.parquet, {train,val}/labels.zarr and classes.yaml, and of the open
            vocabulary open/classes.yaml and open/{train,val}.zarr.
        workers: threads that read and decode images, at least 1; the result does not depend on it.

    Returns:
        Counts for metrics/format.json (JSON values).

    Raises:
        DataError: files are missing; there are problems and `on_problem` is stop; or a split has no images.
        ParamsError: a parameter does not fit the layout, or the raw files lie where the tables go.
        ArtifactError: `out` cannot be written.
    """
    _refuse_overlap(Path(params.root), out)
    raw = read_raw(params)
    problems = list(raw.problems)
    tables, parts = {}, {}
    for split in SPLITS:
        tables[split], parts[split] = _check(raw, split, params.max_pixels, workers, problems)
        if not parts[split].ids:
            problems.append(Problem("empty_split", split, str(raw.image_root), "no image is left"))
    for problem in problems[:_LOGGED]:
        _log.warning("%s", problem)
    judge(
        problems,
        params.on_problem == "leave_out",
        f"data set {params.name}, {params.root}",
        "Mend the files, or set dataset.on_problem: leave_out to go on without these images.",
        "A split without images cannot be used: see dataset.root, dataset.train and dataset.val.",
    )
    open_labels = {
        split: open_vocabulary.labels_of(part, raw.classes, raw.open_classes) for split, part in parts.items()
    }
    table.write_classes(out / "classes.yaml", raw.classes)
    table.write_classes(out / "open" / "classes.yaml", raw.open_classes)
    for split in SPLITS:
        tables[split].write(out / split / "images.parquet")
        table.write_labels(out / split / "labels.zarr", parts[split].labels, tables[split], raw.classes)
        table.write_labels(out / "open" / f"{split}.zarr", open_labels[split], tables[split], raw.open_classes)
    metrics = _metrics(params, raw, tables, parts, problems)
    return metrics | {"open_vocabulary": _open_counts(raw.open_classes, open_labels)}


def _refuse_overlap(root: Path, out: Path) -> None:
    """Refuse raw files where the tables go."""
    own, written = root.resolve(), out.resolve()
    if own == written or written in own.parents:
        raise ParamsError(
            f"dataset.root: {root} lies in {out}, where the pipeline writes; move the raw files, for example to "
            f"data/raw/{out.name}"
        )


def _check(
    raw: RawDataset, split: Split, max_pixels: int, workers: int, problems: list[Problem]
) -> tuple[ImageTable, RawSplit]:
    """Open the images of a split in order of their ids; those that cannot be opened become problems."""
    part = raw.splits[split]
    part = part.take(sorted(range(len(part.ids)), key=part.ids.__getitem__))
    _log.info("%s: checking %d images", split, len(part.ids))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = list(pool.map(lambda path: images.check(raw.image_root / path, max_pixels), part.paths))
    rows = []
    for row, result in enumerate(results):
        if isinstance(result, images.Checked):
            rows.append(row)
        else:
            problems.append(Problem("undecodable_image", split, part.ids[row], result))
    good = [result for result in results if isinstance(result, images.Checked)]
    part = part.take(rows)
    checked = ImageTable(
        root=raw.image_root,
        ids=part.ids,
        paths=part.paths,
        widths=np.array([item.width for item in good], np.int32),
        heights=np.array([item.height for item in good], np.int32),
        sizes=np.array([item.size for item in good], np.int64),
        hashes=[item.digest for item in good],
        max_pixels=max_pixels,
    )
    return checked, part


def _metrics(
    params: DatasetParams,
    raw: RawDataset,
    tables: dict[Split, ImageTable],
    parts: dict[Split, RawSplit],
    problems: Sequence[Problem],
) -> dict[str, Any]:
    names = [item.name for item in raw.classes]
    contents = {split: set(tables[split].hashes) for split in SPLITS}
    result: dict[str, Any] = {"dataset": params.name, "reader": params.reader, "classes": len(names)}
    if params.reader == "voc":
        result["difficult"] = params.difficult
    for split in SPLITS:
        result[split] = _counts(parts[split], names) | _left_out([item for item in problems if item.split == split])
    # The same picture under two names: ids cannot tell, contents can.
    result["contents_in_both_splits"] = len(contents["train"] & contents["val"])
    result["notes"] = raw.notes
    return result


def _counts(part: RawSplit, names: list[str]) -> dict[str, Any]:
    positives = (part.labels == 1).sum(axis=0)
    labelled = _labelled(part.labels)
    return {
        "images": len(part.ids),
        "labelled_images": labelled,
        "positives": int(positives.sum()),
        "labels_per_image": _labels_per_image(part.labels),
        "unknown_share": round(float((part.labels < 0).mean()), 6),
        "positives_per_class": dict(zip(names, positives.tolist(), strict=True)),
    }


def _labelled(labels: Labels) -> int:
    return int((labels >= 0).any(axis=1).sum())


def _labels_per_image(labels: Labels) -> float | None:
    """Positives of an image that has any label known; None where no image has."""
    labelled = _labelled(labels)
    return round(int((labels == 1).sum()) / labelled, 4) if labelled else None


def _open_counts(labels: Sequence[ClassName], ground_truth: Mapping[Split, Labels]) -> dict[str, Any]:
    seen = sum(item.seen for item in labels)
    return {
        "seen": seen,
        "unseen": len(labels) - seen,
        "labels_per_image": {split: _labels_per_image(ground_truth[split]) for split in SPLITS},
        # Those that a zero-shot evaluation is about.
        "unseen_positives": int((ground_truth["val"][:, seen:] == 1).sum()),
    }


def _left_out(problems: Sequence[Problem]) -> dict[str, Any]:
    return {
        "left_out": dict(sorted(Counter(problem.kind for problem in problems).items())),
        "left_out_images": [f"{problem.where}: {problem.detail}" for problem in problems],
    }
