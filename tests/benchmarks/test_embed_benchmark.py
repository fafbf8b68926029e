"""The benchmark of the embedder: its last line, what its ways do, and its measure of memory."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from clipdistill import store
from opened_images import record_opened

SCRIPT = "embed"
SETTINGS = "--model scenes-tiny --precision fp32 --images 5 --size 80 60 --grid 2 --batch 4 --threads 1"
TINY = SETTINGS.split()


def test_last_line_says_what_was_measured(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([*TINY, "--rounds", "2", "--published-share", "3"]) == 0
    text = capsys.readouterr().out
    result = json.loads(text.splitlines()[-1])
    assert result["views"] == 25
    faster = max(result["forward_in_lanes_views_per_s"], result["forward_on_all_cores_views_per_s"])
    assert result["share_of_forward"] == pytest.approx(result["views_per_s"] / faster, rel=0.01)
    published = result["published_way_views_per_s"]
    assert result["times_published_way"] == pytest.approx(result["views_per_s"] / published, rel=0.01)
    assert 0.999 < result["lowest_cosine"] <= 1 + 1e-9


def test_summary_takes_medians_and_the_faster_forward(benchmark: ModuleType) -> None:
    rates = {
        benchmark.PIPELINE: [90.0, 10.0, 45.0],
        benchmark.LANES: [50.0, 40.0, 60.0],
        benchmark.CORES: [30.0, 99.0, 40.0],
        benchmark.PUBLISHED: [15.0, 5.0, 80.0],
    }
    found = benchmark.summary(rates)
    assert (found["share_of_forward"], found["times_published_way"]) == (0.9, 3.0)


def test_the_ways_embed_what_they_say(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = benchmark.build(benchmark.parse([*TINY, "--published-share", "3"]), tmp_path)
    opened = record_opened(monkeypatch)
    artifacts = bench.pipeline()
    assert sorted(opened) == sorted(2 * list(range(5)))
    assert store.read_group(artifacts["snippets"]).shape("embedding")[0] == 20
    opened.clear()
    assert bench.published_way().shape[:2] == (2, 5)
    assert len(list(tmp_path.rglob("*.pt"))) == 2
    assert sum(len(batch) for batch in benchmark.ready_batches(bench, 0)) == 25


def test_memory_is_that_of_a_process_of_its_own(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TINY, "--rounds", "1", "--memory", "3", "6"]
    assert benchmark.main(options) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["memory_images"] == [3, 6]
    assert all(0 < before <= peak for before, peak in zip(result["before_mb"], result["peak_mb"], strict=True))


def test_too_small_a_number_is_one_line(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--images", "0"]) > 0
    assert capsys.readouterr().err == "--images: 0 is too small, 1 is the least\n"
