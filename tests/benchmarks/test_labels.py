"""The benchmark of labels: its last line, its ratios, and that it refuses ways that make different labels."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from clipdistill import store

TOP = Path(__file__).resolve().parents[2]
SCRIPT = "labels"
TINY = ["--images", "30", "--snippets", "3", "--classes", "5", "--width", "16", "--rounds", "2", "--threads", "1"]


def test_last_line_says_what_was_measured() -> None:
    command = [sys.executable, TOP / "benchmarks" / "labels.py", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    lines = done.stdout.splitlines()
    assert lines[0] == "30 images, 90 snippets, 5 classes, width 16, threads 1, 2 rounds"
    assert [line[:14].rstrip() for line in lines[3:8]] == [
        "imports",
        "similarity",
        "bare product",
        "labels",
        "bare labels",
    ]
    result = json.loads(lines[-1])
    assert result["images"] == 30
    for name in ("similarity", "labels"):
        ratio = result[f"{name}_s"] / result[f"{name}_bare_s"]
        assert result[f"{name}_times_bare"] == pytest.approx(ratio, rel=0.01, abs=0.001)
        assert result[f"{name}_processor_times_bare"] > 0
        assert result[f"{name}_peak_mb"] >= result["imports_peak_mb"] > 10


def test_summary_takes_medians_and_the_highest_memory(benchmark: ModuleType) -> None:
    made = {name: [benchmark.Measured(1.0, 1.0, 5.0)] for name in benchmark.WAYS}
    made["similarity"] = [benchmark.Measured(*item) for item in [(9.0, 6.0, 7.0), (3.0, 8.0, 9.0), (4.0, 7.0, 8.0)]]
    made["bare product"] = [benchmark.Measured(2.0, 3.5, 6.0)]
    assert benchmark.summary(made) == {
        "imports_peak_mb": 5.0,
        "similarity_s": 4.0,
        "similarity_bare_s": 2.0,
        "similarity_times_bare": 2.0,
        "similarity_processor_times_bare": 2.0,
        "similarity_peak_mb": 9.0,
        "labels_s": 1.0,
        "labels_bare_s": 1.0,
        "labels_times_bare": 1.0,
        "labels_processor_times_bare": 1.0,
        "labels_peak_mb": 5.0,
    }


def test_ways_that_make_different_labels_are_refused(benchmark: ModuleType, tmp_path: Path) -> None:
    bench = benchmark.Bench(tmp_path, 4, 3, 5, 16, 1)
    labels = np.random.default_rng(0).random((4, 5), dtype=np.float32)
    store.write_group(tmp_path / bench.paths.labels("cdul"), {"labels": labels}, {})
    (labels + np.float32(1e-6)).tofile(tmp_path / "labels.raw")
    benchmark.require_same_labels(bench)
    (labels + np.float32(1e-3)).tofile(tmp_path / "labels.raw")
    with pytest.raises(benchmark.ClipdistillError, match=r"differ from the bare ones by up to 0\.001"):
        benchmark.require_same_labels(bench)


def test_a_number_that_is_too_small_is_refused(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--images", "0"]) != 0
    assert "--images: 0 is too small" in capsys.readouterr().err
