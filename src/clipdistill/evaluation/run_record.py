"""How a run was made: versions of the libraries that matter, the commit, and what each stage took on this machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from clipdistill import __version__

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "torchmetrics", "zarr", "numpy", "pillow", "dvc")
PIPELINES = ("stages/scenes/dvc.yaml", "dvc.yaml", "stages/ccd/dvc.yaml")

# What the numbers come from; metrics and lock files change with every run.
_SOURCES = ("src", "stages", "dvc.yaml", "params.yaml", ":(exclude)*dvc.lock")


@dataclass(frozen=True, slots=True)
class StageTime:
    """What a stage took when it last ran in this checkout.

    Attributes:
        name: as dvc.yaml has it.
        seconds: of its work, without the start of Python.
        finished: date and time, ISO 8601, UTC.
        counts: what it handled by name: views, images.
    """

    name: str
    seconds: float
    finished: str
    counts: dict[str, int]

    @property
    def day(self) -> str:
        """Date of `finished`, UTC; empty where it is not known."""
        return self.finished[:10]

    @property
    def rates(self) -> dict[str, float]:
        """What it handled a second, by name."""
        return {f"{what}/s": number / self.seconds for what, number in self.counts.items() if self.seconds > 0}


def versions() -> dict[str, str]:
    """Versions by package, this one and Python first; one that is not installed is left out."""
    found = {"clipdistill": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit(top: Path) -> str:
    """Name the git commit of a checkout, and say whether code or parameters differ from it.

    Args:
        top: its top folder.
    """
    head = _git(top, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return "not known: no git checkout"
    changed = _git(top, "--no-optional-locks", "status", "--porcelain", "--", *_SOURCES)
    return f"{head}, with changes in code or parameters" if changed else head


def experiment() -> str | None:
    """Name of the DVC experiment that this process is part of; None where it is part of none."""
    return os.environ.get("DVC_EXP_NAME") or None


def _git(top: Path, *arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    result = subprocess.run([git, *arguments], cwd=top, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def stage_names(top: Path) -> list[str]:
    """Names of all stages in the order of the pipeline files, those of each file as it has them."""
    return [name for file in PIPELINES if (top / file).is_file() for name in _names(top / file)]


def _names(file: Path) -> Iterator[str]:
    for name, content in yaml.safe_load(file.read_text(encoding="utf-8"))["stages"].items():
        yield from (f"{name}@{item}" for item in content["foreach"]) if "foreach" in content else (name,)


def stage_times(folder: Path, names: list[str]) -> tuple[list[StageTime], list[str]]:
    """Read what stages took.

    Args:
        folder: of the records that `stage.run` leaves.
        names: of the stages.

    Returns:
        The records that are there, in the order of `names`; and the names of those without one.
    """
    found = {name: _read(folder / f"{name}.json", name) for name in names}
    return [time for time in found.values() if time is not None], [name for name in names if found[name] is None]


def _read(path: Path, name: str) -> StageTime | None:
    """A record that is missing or damaged counts as none: it is a note, and nothing is derived from it."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        counts = {str(what): int(number) for what, number in content["counts"].items()}
        return StageTime(name, float(content["seconds"]), str(content["finished"]), counts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
