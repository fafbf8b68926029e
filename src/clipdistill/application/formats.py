"""Predictions as text: a table for people, CSV, JSON and JSON lines for programs, each written as results come."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

Result: TypeAlias = tuple[str, list[tuple[str, float]]]
"""Path of an image, and its classes with their scores, the highest first."""

Format = Literal["table", "csv", "json", "jsonl"]

_WIDEST = 60


def as_csv(results: Iterable[Result]) -> Iterator[str]:
    """One row a class; an image without any has one row with both fields empty, so that every image is there."""
    yield _row(["path", "class", "score"])
    for path, classes in results:
        for name, score in classes:
            yield _row([path, name, f"{score:.6f}"])
        if not classes:
            yield _row([path, "", ""])


def as_json_lines(results: Iterable[Result]) -> Iterator[str]:
    """One JSON object a line and image."""
    for result in results:
        yield _json(result) + "\n"


def as_json(results: Iterable[Result]) -> Iterator[str]:
    """One JSON array of all images."""
    between = "[\n"
    for result in results:
        yield between + _json(result)
        between = ",\n"
    yield "[]\n" if between == "[\n" else "\n]\n"


def as_table(results: Iterable[Result]) -> Iterator[str]:
    """One line an image, in columns; what a terminal would take for a command is shown as a question mark."""
    rows = [(_shown(path), classes) for path, classes in results]
    yield from columns(
        ["image", "classes"],
        [[path, ", ".join(f"{_shown(name)} {score:.2f}" for name, score in classes) or "-"] for path, classes in rows],
    )


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table; every column but the last is as wide as its longest cell, within limits."""
    widths = [min(max(len(row[i]) for row in [head, *rows]), _WIDEST) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [_cut(cell, width).ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  ".join([*cells, row[-1]]) + "\n"


WRITERS: dict[Format, Callable[[Iterable[Result]], Iterator[str]]] = {
    "table": as_table,
    "csv": as_csv,
    "json": as_json,
    "jsonl": as_json_lines,
}


def _json(result: Result) -> str:
    path, classes = result
    # JSON is UTF-8: bytes of a name that are none stand as \\xNN in it.
    path = os.fsencode(path).decode("utf-8", errors="backslashreplace")
    found = [{"class": name, "score": round(score, 6)} for name, score in classes]
    return json.dumps({"path": path, "classes": found}, ensure_ascii=False)


def _row(fields: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()


def _shown(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _cut(text: str, width: int) -> str:
    """Shorten a text from its left: the end of a path tells more."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]
