"""The benchmark of training: its last line, that its ways take the same steps, and what it refuses."""

import argparse
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = "train"
TINY = [
    "--backbone",
    "shufflenet_v2_x0_5",
    "--size",
    "32",
    "--stride",
    "32",
    "--batch",
    "8",
    "--images",
    "20",
    "--rounds",
    "1",
    "--threads",
    "1",
    "--precision",
    "fp32",
]


@pytest.fixture
def options(benchmark: ModuleType) -> argparse.Namespace:
    torch.set_num_threads(1)
    return benchmark.parse([*TINY, "--views", "2"])


def test_last_line_says_what_was_measured(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(TINY) == 0
    text = capsys.readouterr().out
    result = json.loads(text.splitlines()[-1])
    rates = result["images_per_s"], result["bare_images_per_s"]
    assert min(rates) > 0
    assert result["share_of_bare_step"] == pytest.approx(rates[0] / rates[1], rel=0.01)
    assert 0 < result["epoch_share_of_bare_step"] < result["share_of_bare_step"]
    assert set(result["seconds"]) == {
        "loop",
        "bare step",
        "clean pass",
        "curves",
        "checkpoint",
        "loop, decoding anew",
    }
    settings = {key: result[key] for key in ("backbone", "size", "batch", "views", "images", "threads", "precision")}
    assert list(settings.values()) == ["shufflenet_v2_x0_5", 32, 8, 1, 20, 1, "float32"]
    assert f"{rates[0]:.1f} images/s" in text


def test_summary_takes_medians_and_counts_the_images_of_full_batches(benchmark: ModuleType) -> None:
    """20 images in batches of 8: the bare step sees 16 of them."""
    seconds = {
        "loop": [(2.0, 1.0), (2.5, 1.25), (90.0, 1.25)],
        "bare step": [(1.6, 0.8)] * 3,
        "clean pass": [(1.0, 0.5)] * 3,
        "curves": [(0.25, 0.25)] * 3,
        "checkpoint": [(0.25, 0.0)] * 3,
        "loop, decoding anew": [(5.0, 2.5)] * 3,
    }
    result = benchmark.summary(seconds, images=20, batch=8)
    assert result["images_per_s"] == 8
    assert result["bare_images_per_s"] == 10
    assert result["share_of_bare_step"] == result["share_of_bare_step_of_processor_time"] == 0.8
    assert (result["epoch_share_of_bare_step"], result["decoding_anew_share"]) == (0.5, 0.5)


def test_ways_take_batches_of_the_same_size_and_layout(
    benchmark: ModuleType, options: argparse.Namespace, tmp_path: Path
) -> None:
    bench, seen = benchmark.build(options, tmp_path, 1), []
    bench.trainer.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    bench.trainer._learn(1, bench.progress)
    # The last batch has 4 of the 20 images.
    assert [len(values) for values in seen] == [16, 16, 8]
    seen.clear()
    before = bench.trainer.student.head.weight.detach().clone()
    bench.bare()
    assert [len(values) for values in seen] == [16, 16]
    assert all(values.is_contiguous(memory_format=torch.channels_last) for values in seen)
    assert not torch.equal(bench.trainer.student.head.weight, before)


@pytest.mark.slow
def test_processes_are_compared(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([*TINY, "--processes", "2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rates = result["processes_images_per_s"], result["one_process_images_per_s"]
    assert result["times_one_process"] == pytest.approx(rates[0] / rates[1], rel=0.01)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--rounds", "0", "--rounds: 0 is too small, 1 is the least"),
        ("--images", "7", "--images: 7 do not fill a batch of 8"),
    ],
)
def test_a_wrong_option_is_named(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    assert benchmark.main([*TINY, option, value]) == 2
    assert message in capsys.readouterr().err
