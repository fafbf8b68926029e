"""The benchmark of the ranking loss: its last line, what it leaves out, and that it refuses unlike losses."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOP = Path(__file__).resolve().parents[2]
SCRIPT = "rank_loss"
TINY = ["--batch", "3", "--patches", "5", "--width", "8", "--k", "2", "--rounds", "1", "--threads", "1"]


def test_last_line_says_what_was_measured() -> None:
    command = [
        sys.executable,
        TOP / "benchmarks" / "rank_loss.py",
        *TINY,
        "--labels",
        "40",
        "400",
        "--pairwise-mb",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    lines = done.stdout.splitlines()
    assert lines[0] == "batch 3, 5 patches, width 8, k 2, threads 1, 1 rounds"
    # 3 x 400 x 400 float32 are 1.92 MB.
    ways = [("40", "closed"), ("40", "smooth"), ("40", "pairwise"), ("400", "closed"), ("400", "smooth")]
    assert [tuple(line.split()[:2]) for line in lines[3:-2]] == ways
    result = json.loads(lines[-1])
    assert (result["labels"], result["batch"]) == ([40, 400], 3)
    assert result["400_pair_tensor_mb"] == 1.9
    for labels, loss in ways:
        assert result[f"{labels}_{loss}_s"] > 0
        assert result[f"{labels}_{loss}_peak_mb"] > result[f"{labels}_{loss}_mb"] >= 0


def test_the_pairs_that_it_compares_with_have_the_value_and_gradient_of_the_closed_form(benchmark: ModuleType) -> None:
    bench = benchmark.Bench(4, 5, 8, 2, 1)
    gradients = []
    for loss in ("closed", "pairwise"):
        made = bench.inputs(30)
        gradients.append((bench._learn(loss, *made), made[0].grad, made[1].grad))
    torch.testing.assert_close(*gradients)


def test_summary_takes_medians_and_the_greatest_growth(benchmark: ModuleType) -> None:
    measured = benchmark.Measured
    found = {
        (10, "closed"): [
            measured(*item) for item in [(1.0, 2.0, 9.0, 0.5), (9.0, 3.0, 7.0, 0.5), (2.0, 1.0, 8.0, 0.5)]
        ],
        (10, "pairwise"): [measured(5.0, 6.0, 20.0, 0.5)],
    }
    assert benchmark.summary(found, 1_000) == {
        "10_closed_s": 2.0,
        "10_closed_mb": 3.0,
        "10_closed_peak_mb": 9.0,
        "10_pairwise_s": 5.0,
        "10_pairwise_mb": 6.0,
        "10_pairwise_peak_mb": 20.0,
        "10_pair_tensor_mb": 0.4,
        "10_times_closed_s": 2.5,
        "10_times_closed_mb": 2.0,
    }


def test_unlike_losses_are_refused(benchmark: ModuleType) -> None:
    closed, other = (benchmark.Measured(1.0, 1.0, 1.0, value) for value in (0.5, 0.75))
    benchmark.require_same_values({(9, "closed"): [closed], (9, "smooth"): [other], (9, "pairwise"): [closed]})
    with pytest.raises(benchmark.ClipdistillError, match=r"of 9 labels the losses differ by 0\.25"):
        benchmark.require_same_values({(9, "closed"): [closed], (9, "pairwise"): [other]})


def test_a_number_that_is_too_small_is_refused(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--labels", "5", "0"]) == 2
    assert "--labels: [5, 0] is too small" in capsys.readouterr().err
