"""The benchmark of CAM views: its last line, that its ways do what they say, and that it refuses unlike embeddings."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from opened_images import record_opened

SCRIPT = "cam_views"
IMAGES, ROUNDS, BATCH = 5, 2, 4
TINY = (
    f"--model scenes-tiny --precision fp32 --images {IMAGES} --views 2 --size 80 60 --batch {BATCH} --threads 1".split()
)


def test_last_line_says_what_was_measured(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([*TINY, "--rounds", str(ROUNDS)]) == 0
    text = capsys.readouterr().out
    result = json.loads(text.splitlines()[-1])
    batched = result["views_per_s"]
    assert batched > 0
    assert result["times_one_at_a_time"] == pytest.approx(batched / result["one_at_a_time_views_per_s"], rel=0.01)
    assert result["share_of_forward"] == pytest.approx(batched / result["forward_views_per_s"], rel=0.01)
    assert 0.999 < result["lowest_cosine"] <= 1 + 1e-9
    assert result["neighbours_cosine"] < 0.999
    settings = {key: result[key] for key in ("model", "precision", "threads", "batch", "images", "rounds")}
    assert list(settings.values()) == ["scenes-tiny", "fp32", 1, BATCH, IMAGES, ROUNDS]
    assert 1 <= result["views"] <= 4 * IMAGES
    # The number in the last line is rounded already, so that its own rounding may differ in the last place.
    name, shown = text.splitlines()[3].split()[:2]
    assert (name, float(shown)) == ("batched", pytest.approx(batched, abs=0.11))


def test_summary_takes_medians(benchmark: ModuleType) -> None:
    rates = {"batched": [90.0, 10.0, 30.0], "one at a time": [15.0, 5.0, 80.0], "pure forward": [60.0, 61.0, 1.0]}
    assert benchmark.summary(rates) == {
        "views_per_s": 30.0,
        "one_at_a_time_views_per_s": 15.0,
        "forward_views_per_s": 60.0,
        "times_one_at_a_time": 2.0,
        "share_of_forward": 0.5,
    }


def test_views_vary_in_number_and_lie_in_their_images(benchmark: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = benchmark.draw_table(tmp_path, 40, (30, 20), rng)
    views = benchmark.draw_views(table, 4, rng)
    counts = np.diff(views.offset)
    assert (counts.min(), counts.max()) == (0, 8)
    assert counts.mean() == pytest.approx(4, abs=1.3)
    x0, y0, x1, y1 = views.box.T
    assert (x0 >= 0).all()
    assert (y0 >= 0).all()
    assert (x1 <= 30 + 1e-3).all()
    assert (y1 <= 20 + 1e-3).all()
    assert (x1 - x0 >= 6 - 1e-3).all()
    assert (y1 - y0 >= 4 - 1e-3).all()


def test_one_way_opens_an_image_once_and_the_other_for_each_view(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = benchmark.parse(TINY)
    torch.set_num_threads(1)
    bench = benchmark.build(options, tmp_path)
    opened = record_opened(monkeypatch)
    counts = np.diff(bench.views.offset)
    bench.batched()
    assert sorted(opened) == np.flatnonzero(counts).tolist()
    opened.clear()
    bench.one_at_a_time()
    assert opened == np.repeat(np.arange(IMAGES), counts).tolist()

    sizes: list[int] = []
    encode = bench.cast.model.encode_image
    monkeypatch.setattr(bench.cast.model, "encode_image", lambda values: sizes.append(len(values)) or encode(values))
    bench.batched()
    in_batches, sizes[:] = list(sizes), []
    bench.forward(torch.zeros(BATCH, 3, bench.transform.size, bench.transform.size))
    assert sizes == in_batches
    assert sum(sizes) == len(bench.views)
    assert set(sizes[:-1]) == {BATCH}


def test_unlike_embeddings_are_refused(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = benchmark.Bench.one_at_a_time
    monkeypatch.setattr(benchmark.Bench, "one_at_a_time", lambda self: np.roll(real(self), 1, axis=0))
    assert benchmark.main([*TINY, "--rounds", "1"]) == 1
    captured = capsys.readouterr()
    assert "do not embed the same thing" in captured.err
    assert not captured.out


def test_an_unknown_model_is_named(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([*TINY, "--model", "ViT-nowhere"]) == 2
    assert "open_clip knows no 'ViT-nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--size", "500 0", "--size: [500, 0] is too small, 1 is the least"),
        ("--rounds", "0", "--rounds: 0 is too small, 1 is the least"),
        ("--seed", "-1", "--seed: -1 is too small, 0 is the least"),
    ],
)
def test_a_wrong_option_is_named(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    assert benchmark.main([*TINY, option, *value.split()]) == 2
    assert message in capsys.readouterr().err
