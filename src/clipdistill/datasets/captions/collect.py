"""Captions to caption tables: every image is opened once, and every problem is counted.

Nothing is written before all images of both splits are checked.
"""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from clipdistill.datasets import images
from clipdistill.datasets.captions import coco, masks, table_file, webdataset, words
from clipdistill.datasets.captions.table import LIMIT, CaptionTable
from clipdistill.datasets.raw import Problem, judge
from clipdistill.datasets.table import SPLITS, Split
from clipdistill.stage import Paths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clipdistill.datasets.captions.pairs import Pair, RawCaptions
    from clipdistill.params import CaptionParams

Item = TypeVar("Item")
Result = TypeVar("Result")

_READERS = {"table": table_file.read, "coco": coco.read, "webdataset": webdataset.read}

_LOGGED = 100

_log = logging.getLogger(__name__)


def collect_all(params: CaptionParams, dataset: str, workers: int) -> dict[str, Any]:
    """Read and check the captions of both splits, and write their tables.

    Args:
        params: section `ttd.captions`.
        dataset: `dataset.name`, which says where the tables go.
        workers: threads that read and decode images, at least 1; the result does not depend on it.

    Returns:
        Counts for metrics/ttd/captions.json (JSON values).

    Raises:
        DataError: as for `collect`.
        ParamsError: as for `collect`.
        ArtifactError: a table cannot be written.
    """
    report: dict[str, Any] = {"reader": params.reader, "function_words_dropped": params.drop_function_words}
    tables = {}
    for split in SPLITS:
        tables[split], report[split] = collect(params, split, workers)
    for split in SPLITS:
        tables[split].write(Paths(dataset).captions(split))
    # A picture that training has seen says little in the evaluation.
    report["contents_in_both_splits"] = len(set(tables["train"].hashes) & set(tables["val"].hashes))
    return report


def collect(params: CaptionParams, split: Split, workers: int = 1) -> tuple[CaptionTable, dict[str, Any]]:
    """Read the captions of a split and check every image and mask.

    Args:
        params: section `ttd.captions`.
        split: which split.
        workers: threads that read and decode images, at least 1; the result does not depend on it.

    Returns:
        The table, and counts (JSON values).

    Raises:
        DataError: files are missing or broken; there are problems and `on_problem` is stop; or nothing is left.
        ParamsError: a parameter does not fit the layout.
    """
    raw = _READERS[params.reader](params, split)
    problems = list(raw.problems)
    checked = _check(raw, params, split, workers, problems)
    if not checked:
        problems.append(Problem("empty_split", split, str(raw.image_root), "no caption is left"))
    for problem in problems[:_LOGGED]:
        _log.warning("%s", problem)
    judge(
        problems,
        params.on_problem == "leave_out",
        f"the captions of {split}, {params.root}",
        "Mend the files, or set ttd.captions.on_problem: leave_out to go on without these pairs.",
        f"A split without captions cannot be used: see ttd.captions.root and ttd.captions.{split}.",
    )
    table = _table(raw.image_root, checked, params.max_pixels)
    return table, _counts(table, checked, problems) | {"notes": raw.notes}


# File of an image, byte where it begins, bytes (None: the file's own).
_Place = tuple[str, int, int | None]


@dataclass(frozen=True, slots=True)
class _Checked:
    """A pair that nothing is wrong with, its candidates, its image, and the hash of its mask or ''."""

    pair: Pair
    tags: list[str]
    image: images.Checked
    mask_hash: str


def _check(
    raw: RawCaptions, params: CaptionParams, split: Split, workers: int, problems: list[Problem]
) -> list[_Checked]:
    """Check pairs in order of their ids; those with something wrong become problems."""
    found = _with_candidates(raw.pairs, params.drop_function_words, split, problems)
    _log.info("%s: checking the images of %d captions", split, len(found))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        places = [(pair.path, pair.offset, pair.size) for pair, _ in found]
        opened = _each(pool, partial(_open_image, raw.image_root, params.max_pixels), places)
        sized = zip(found, opened, strict=True)
        wanted = [(pair.mask, image) if isinstance(image, images.Checked) else ("", None) for (pair, _), image in sized]
        masked = _each(pool, partial(_open_mask, raw.image_root), wanted)
    checked = []
    for (pair, tags), image, (mask_hash, fault) in zip(found, opened, masked, strict=True):
        if isinstance(image, str):
            problems.append(Problem("undecodable_image", split, pair.id, image))
        elif fault:
            problems.append(Problem("broken_mask", split, pair.id, fault))
        else:
            checked.append(_Checked(pair, tags, image, mask_hash))
    return checked


def _with_candidates(
    pairs: Sequence[Pair], drop: bool, split: Split, problems: list[Problem]
) -> list[tuple[Pair, list[str]]]:
    """Pairs in order of their ids, with their candidates; those without any become problems."""
    found = []
    for pair in sorted(pairs, key=lambda pair: pair.id):
        if tags := words.candidates(pair.caption, drop):
            found.append((pair, tags))
        else:
            problems.append(Problem("no_candidates", split, pair.id, f"no word of {pair.caption:.99} is a candidate"))
    return found


def _each(pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Work on each item, on equal ones once."""
    unique = list(dict.fromkeys(items))
    results = dict(zip(unique, pool.map(work, unique), strict=True))
    return [results[item] for item in items]


def _open_image(root: Path, max_pixels: int, place: _Place) -> images.Checked | str:
    """Size and hash of an image, or what is wrong with it."""
    path, offset, size = place
    return images.check(root / path, max_pixels, LIMIT, offset, size)


def _open_mask(root: Path, wanted: tuple[str, images.Checked | None]) -> tuple[str, str]:
    """Hash of a mask, and what is wrong with it; '' and '' where none is wanted."""
    path, image = wanted
    if not path or not image:
        return "", ""
    try:
        data = (root / path).read_bytes()
        masks.decode(data, str(root / path), (image.width, image.height))
    except OSError as error:
        return "", f"{root / path}: cannot be read ({error.strerror})"
    except images.UnreadableImageError as error:
        return "", str(error)
    return images.content_hash(data), ""


def _table(root: Path, checked: Sequence[_Checked], max_pixels: int) -> CaptionTable:
    truth = [None if item.pair.shown is None else _in_order(item) for item in checked]
    known = [found for found in truth if found is not None]
    return CaptionTable(
        root=root,
        ids=[item.pair.id for item in checked],
        paths=[item.pair.path for item in checked],
        offsets=np.array([item.pair.offset for item in checked], np.int64),
        sizes=np.array([item.image.size for item in checked], np.int64),
        hashes=[item.image.digest for item in checked],
        captions=[item.pair.caption for item in checked],
        tags=[item.tags for item in checked],
        truth=known if len(known) == len(checked) else None,
        masks=[item.pair.mask for item in checked],
        mask_hashes=[item.mask_hash for item in checked],
        max_pixels=max_pixels,
    )


def _in_order(item: _Checked) -> list[str]:
    """Candidates that the image shows."""
    return [word for word in item.tags if word in (item.pair.shown or ())]


def _counts(table: CaptionTable, checked: Sequence[_Checked], problems: Sequence[Problem]) -> dict[str, Any]:
    truth = table.truth or []
    strays = sum(len((item.pair.shown or frozenset()) - set(item.tags)) for item in checked)
    return {
        "pairs": len(table),
        "images": len(set(zip(table.paths, table.offsets.tolist(), strict=True))),
        "candidates_per_caption": _mean(table.tags),
        # Words of a caption compete: a lone one is always chosen.
        "captions_with_one_candidate": sum(len(tags) == 1 for tags in table.tags),
        "distinct_words": len({word for tags in table.tags for word in tags}),
        "captions_with_truth": len(truth),
        "true_words_per_caption": _mean(truth) if truth else None,
        # Words that the source calls true, of which the caption has nothing.
        "true_words_that_are_no_candidates": strays,
        "captions_with_mask": sum(mask != "" for mask in table.masks),
        "left_out": dict(sorted(Counter(problem.kind for problem in problems).items())),
        "left_out_pairs": [f"{problem.where}: {problem.detail}" for problem in problems],
    }


def _mean(lists: Sequence[Sequence[str]]) -> float:
    return round(sum(map(len, lists)) / len(lists), 4)
