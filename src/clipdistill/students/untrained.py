"""A model folder without a student: what a method leaves that had nothing to learn from.

A data set without ground truth has no supervised student. The pipeline goes on, and every later stage can tell.
"""

from __future__ import annotations

from pathlib import Path

from clipdistill import store

NOTE = "untrained.txt"


def mark(folder: Path, reason: str) -> None:
    """Write the folder with its reason, a sentence."""
    store.write_atomically(folder / NOTE, f"{reason}\n".encode())


def reason(folder: Path) -> str | None:
    """Why the folder holds no student; None where it should hold one."""
    note = folder / NOTE
    return note.read_text(encoding="utf-8").strip() if note.is_file() else None
