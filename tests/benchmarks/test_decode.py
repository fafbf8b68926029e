"""The benchmark of decoders and resizes: its last line, its arithmetic, and that unlike pixels are told apart."""

import json
from types import ModuleType

import numpy as np
import pytest

SCRIPT = "decode"
IMAGES, ROUNDS, SIDE = 2, 2, 64
TINY = f"--images {IMAGES} --rounds {ROUNDS} --side {SIDE} --size 80 60 --size 150 140 --models scenes-tiny".split()


def test_last_line_says_what_was_measured(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(TINY) == 0
    text = capsys.readouterr().out
    result = json.loads(text.splitlines()[-1])
    ms, gap = result["ms"], result["difference"]
    always = {"decode, 80 x 60", "decode, 150 x 140", "resize, a snippet", "resize, the whole", "path", "rest"}
    assert always | {"encoder, ms a view"} <= set(ms)
    assert all(value > 0 for named in ms.values() for value in named.values())
    assert {key: result[key] for key in ("images", "rounds", "side", "seed")} == {
        "images": IMAGES,
        "rounds": ROUNDS,
        "side": SIDE,
        "seed": 0,
    }
    exact = {"max_difference": 0, "differing_pixels": 0.0}
    assert gap["decode, 80 x 60"]["torchvision"]["max_difference"] <= 4
    # It has halved the larger images, which cannot be compared pixel by pixel.
    assert gap["decode, 80 x 60"]["Pillow, draft"] == exact
    assert "Pillow, draft" not in gap["decode, 150 x 140"]
    snippet = gap["resize, a snippet"]
    assert snippet["Pillow"] == exact
    # Pillow's box lets the filter look beyond the snippet; torch differs by roundings.
    assert snippet["Pillow, box"]["max_difference"] > 4
    assert 0 < snippet["torch uint8"]["max_difference"] <= 4
    assert gap["resize, the whole"]["Pillow, box"] == exact
    assert gap["path"]["Pillow + Pillow"] == exact
    share = result["share_of_encoder"]["Pillow + Pillow"]["scenes-tiny"]
    expected = ms["path"]["Pillow + Pillow"] / (10 * ms["encoder, ms a view"]["scenes-tiny"])
    assert share == pytest.approx(expected, rel=0.01, abs=1e-4)
    assert f"{ms['decode, 80 x 60']['Pillow']:.3f}" in text


def test_summary_takes_medians_and_shares(benchmark: ModuleType) -> None:
    times = {"path": {"a + b": [30.0, 10.0, 20.0]}, "encoder, ms a view": {"one": [5.0, 4.0, 90.0]}}
    measured = benchmark.summary(times, {}, 10)
    assert measured["ms"]["path"] == {"a + b": 20.0}
    assert measured["share_of_encoder"] == {"a + b": {"one": 0.4}}
    elsewhere = benchmark.summary(times, {"two": 0.5}, 10)
    assert elsewhere["encoder_ms_a_view"] == {"two": 0.5}
    assert elsewhere["share_of_encoder"] == {"a + b": {"two": 4.0}}


def test_difference_counts_pixels_and_not_values(benchmark: ModuleType) -> None:
    reference = np.full((2, 2, 3), 250, dtype=np.uint8)
    found = reference.copy()
    found[0, 0] = (250, 3, 249)
    measured = benchmark.pixel_ways.difference([found, reference], [reference, reference])
    assert measured == {"max_difference": 247, "differing_pixels": 0.125}


def test_what_is_not_installed_is_left_out_with_the_reason(benchmark: ModuleType) -> None:
    def absent() -> int:
        raise ModuleNotFoundError("No module named 'fastjpeg'")

    found, skipped = benchmark.pixel_ways.available({"here": lambda: 7, "fastjpeg": absent})
    assert found == {"here": 7}
    assert skipped == {"fastjpeg": "No module named 'fastjpeg'"}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--rounds", "0", "--rounds: 0 is too small, 1 is the least"),
        ("--size", "2 60", "a side below 3 pixels"),
        ("--encoder-ms", "1 2", "--encoder-ms: 2 numbers for 1 models"),
        ("--side", "32", "--side: scenes-tiny takes views of 64 pixels, not of 32"),
        ("--models", "ViT-nowhere", "open_clip knows no 'ViT-nowhere'"),
    ],
)
def test_a_wrong_option_is_named(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    assert benchmark.main([*TINY, option, *value.split()]) == 2
    assert message in capsys.readouterr().err
