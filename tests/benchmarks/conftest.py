"""Benchmark scripts as their tests have them: imported beside one another, with a work folder that goes away."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from clipdistill.work import WORK_ROOT_VARIABLE

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script that the test file calls SCRIPT."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    # Scripts set it to a folder of their own; this sets it back.
    monkeypatch.setenv(WORK_ROOT_VARIABLE, str(tmp_path / "work"))
    return importlib.import_module(request.module.SCRIPT)
