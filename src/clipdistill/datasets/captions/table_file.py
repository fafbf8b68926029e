"""Captioned images in a table: a row a pair, as CSV or Parquet."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from clipdistill.datasets.captions import words
from clipdistill.datasets.captions.pairs import Pair, RawCaptions, read_caption
from clipdistill.datasets.raw import Fence, Problem, Refusal, admit, read_text
from clipdistill.errors import DataError, ParamsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipdistill.datasets.table import Split
    from clipdistill.params import CaptionParams

_VALUES = ("path", "caption", "id", "tags", "mask")

# Between the words in a cell of CSV.
_BAR = "|"


def read(params: CaptionParams, split: Split) -> RawCaptions:
    """Read the table of a split.

    Args:
        params: `root` holds the tables `train` and `val`, which end in .csv or .parquet. Columns: `path` or `image`,
            of the image below `images`, or else `root`; `caption`; and optionally `id`; `tags`, the words that the
            image shows (CSV: with | between them, Parquet: a list); `mask`, the path of a mask of what they are.
            Others do not count.
        split: which of them.

    Returns:
        The pairs. Without ids a pair's id is its path, and -2, -3 and so on behind it where the image has more
        captions. Where there is a column `tags`, the true words are those of its words.

    Raises:
        DataError: the table is missing, not of its form, or lacks a column.
        ParamsError: its name has another suffix.
    """
    name = params.train if split == "train" else params.val
    rows, problems = _read_table(Path(params.root) / name, f"ttd.captions.{split}", split)
    root = Path(params.images or params.root)
    pairs: list[Pair] = []
    seen: Counter[str] = Counter()
    for row in rows:
        result = _pair(row, seen)
        if isinstance(result, Pair):
            pairs.append(result)
        else:
            problems.append(Problem(result[0], split, row.place, result[1]))
    fence = Fence(root)
    kept = admit(fence, split, [pair.id for pair in pairs], [pair.path for pair in pairs], problems)
    return RawCaptions(root, _with_masks(fence, split, [pairs[row] for row in kept], problems), problems)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row: where it stands, and its values by what they are."""

    place: str
    values: dict[str, object]


def _read_table(path: Path, key: str, split: Split) -> tuple[list[_Row], list[Problem]]:
    """Rows of a table, and problems of those that are none."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise ParamsError(f"{key}: {path.name!r} is the name of neither a .csv nor a .parquet")
    cure = f"{key} names a table below ttd.captions.root; write the pairs there, with columns path and caption"
    return _read_csv(path, split, cure) if suffix == ".csv" else (_read_parquet(path, cure), [])


def _columns(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Name of the column of each value that is read."""
    known = {value: value for value in _VALUES if value in names}
    if "path" not in known and "image" in names:
        known["path"] = "image"
    if lacking := [value for value in ("path", "caption") if value not in known]:
        raise DataError(
            f"{path} has no column {' and no '.join(lacking)}; it has {', '.join(map(repr, names)) or 'none at all'}"
        )
    if twice := [name for name in known.values() if names.count(name) > 1]:
        raise DataError(f"{path} has more than one column {twice[0]!r}; remove one")
    return known


def _read_csv(path: Path, split: Split, cure: str) -> tuple[list[_Row], list[Problem]]:
    reader = csv.reader(io.StringIO(read_text(path, cure)), strict=True)
    rows, problems = [], []
    try:
        header = [name.strip() for name in next(reader, [])]
        index = {value: header.index(name) for value, name in _columns(path, header).items()}
        for cells in reader:
            place = f"{path.name} line {reader.line_num}"
            if len(cells) == len(header):
                rows.append(_Row(place, {value: cells[column] for value, column in index.items()}))
            elif cells:
                detail = f"{len(cells)} cells, the header has {len(header)}"
                problems.append(Problem("broken_annotation", split, place, detail))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not CSV ({error})") from None
    for row in rows:
        if "tags" in row.values:
            row.values["tags"] = str(row.values["tags"]).split(_BAR)
    return rows, problems


def _read_parquet(path: Path, cure: str) -> list[_Row]:
    try:
        file = pq.ParquetFile(path)
        known = _columns(path, file.schema_arrow.names)
        content = file.read(columns=list(known.values()))
        values = [content.column(name).to_pylist() for name in known.values()]
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is missing: {cure}") from None
    # Arrow's errors of damaged files are not all its own.
    except (pa.ArrowException, OSError, LookupError, ValueError, ArithmeticError, MemoryError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}): write it again") from None
    return [
        _Row(f"{path.name} row {number}", dict(zip(known, row, strict=True)))
        for number, row in enumerate(zip(*values, strict=True))
    ]


def _pair(row: _Row, seen: Counter[str]) -> Pair | Refusal:
    """The pair of a row, or what is wrong with it; `seen` counts the rows of each path."""
    values = row.values
    path = values["path"]
    if not isinstance(path, str) or not path:
        return "broken_annotation", f"the path is {path!r:.99}"
    seen[path] += 1
    pair_id = _id(values["id"]) if "id" in values else path if seen[path] == 1 else f"{path}-{seen[path]}"
    if not pair_id:
        return "broken_annotation", f"the id is {values['id']!r:.99}"
    caption = read_caption(values["caption"])
    if not isinstance(caption, str):
        return caption
    shown = None
    if "tags" in values:
        tags = values["tags"]
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            return "broken_annotation", f"the tags are {tags!r:.99}, no list of words; it may be empty"
        shown = frozenset(word for tag in tags for word in words.split(tag))
    mask = values.get("mask")
    if mask is not None and not isinstance(mask, str):
        return "broken_annotation", f"the mask is {mask!r:.99}, no path"
    return Pair(pair_id, path, caption, shown, mask or "")


def _id(value: object) -> str:
    """An id as text, '' where it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def _with_masks(fence: Fence, split: Split, pairs: list[Pair], problems: list[Problem]) -> list[Pair]:
    """Pairs whose masks may be opened, and those that have none; each of the others becomes a problem."""
    kept = []
    for pair in pairs:
        if pair.mask and (refusal := fence.check(pair.mask)):
            kind, text = refusal
            problems.append(Problem("missing_mask" if kind == "missing_image" else kind, split, pair.id, text))
        else:
            kept.append(pair)
    return kept
