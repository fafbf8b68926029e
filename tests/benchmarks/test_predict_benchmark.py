"""The benchmark of `clipdistill predict`: its last line, and that it refuses what it cannot measure."""

import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = "predict"
SMALL = ["--backbone", "shufflenet_v2_x0_5", "--image-size", "32", "--images", "5", "--size", "80", "60"]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    # The script sets them for the processes it starts; this sets them back.
    for name in ("DEVICE", "THREADS"):
        monkeypatch.setenv(f"CLIPDISTILL_{name}", "1" if name == "THREADS" else "cpu")


def test_last_line_says_what_was_measured(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(code: str, *arguments: str) -> tuple[float, str]:
        assert Path(arguments[-1 if code == benchmark.PROBE else 2]).suffix == ".jpg"
        return 3.0, json.dumps({"import_s": 2.0, "load_s": 0.5, "first_image_s": 0.25})

    monkeypatch.setattr(benchmark, "run_process", answers)
    assert benchmark.main([*SMALL, "--rounds", "1", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    result = json.loads(text.splitlines()[-1])
    assert (result["cold_start_s"], result["import_s"], result["load_s"]) == (3.0, 2.0, 0.5)
    assert result["images_per_s"] > 0
    ratio = result["images_per_s"] / result["forward_images_per_s"]
    assert result["share_of_forward"] == pytest.approx(ratio, rel=0.01)
    assert (result["backbone"], result["images"], result["threads"]) == ("shufflenet_v2_x0_5", 5, 1)
    assert "share of forward" in text


def test_a_process_that_fails_is_no_measurement(benchmark: ModuleType) -> None:
    with pytest.raises(benchmark.ClipdistillError, match="no such thing"):
        benchmark.run_process("raise SystemExit('no such thing')")


def test_numbers_below_one_are_refused(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--image-size", "0"]) == 2
    assert "--image-size" in capsys.readouterr().err
