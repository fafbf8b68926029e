import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clipdistill import __version__, cli, store
from clipdistill.params import StudentParams
from clipdistill.students import classifier, model_folder, student_yaml

ROOT = Path(__file__).resolve().parents[1]


def clipdistill(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from clipdistill.cli import main; main()", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "120"}
    )


def test_help_names_every_command() -> None:
    result = clipdistill("--help")
    assert result.returncode == 0
    for name in ("params", "models", "show", "summary", "predict", "calibrate", "heatmap", "teacher", "export"):
        assert f"\n  {name} " in result.stdout
    assert "--install-completion" in result.stdout
    assert "Exit codes: 0 all done" in result.stdout


@pytest.mark.parametrize("command", ["predict", "calibrate", "heatmap", "teacher", "export"])
def test_help_of_a_command_has_an_example(command: str) -> None:
    text = CliRunner().invoke(cli.app, [command, "--help"]).stdout
    assert f"clipdistill {command} " in text.split("For example:")[1]


def test_completion_is_there_for_the_common_shells() -> None:
    for shell in ("bash", "zsh", "fish"):
        environment = {"_CLIPDISTILL_COMPLETE": f"source_{shell}"}
        assert (
            "_CLIPDISTILL_COMPLETE" in CliRunner().invoke(cli.app, [], prog_name="clipdistill", env=environment).stdout
        )


@pytest.mark.parametrize(
    ("option", "start", "values"),
    [("--format", "j", {"json", "jsonl"}), ("--device", "", {"auto", "cpu", "cuda"})],
)
def test_values_are_completed(option: str, start: str, values: set[str]) -> None:
    environment = {
        "_CLIPDISTILL_COMPLETE": "complete_bash",
        "COMP_WORDS": f"clipdistill predict {option} {start}",
        "COMP_CWORD": "3",
    }
    result = CliRunner().invoke(cli.app, [], prog_name="clipdistill", env=environment)
    assert set(result.stdout.split()) == values


@pytest.mark.parametrize("command", ["predict", "calibrate", "heatmap", "teacher", "export", "params", "models"])
def test_help_says_defaults_and_values_plainly(command: str) -> None:
    text = CliRunner().invoke(cli.app, [command, "--help"]).stdout
    assert "(64)" not in text
    assert not [line for line in text.splitlines() if line.lstrip().startswith("-") and "<" in line]


def test_the_command_line_starts_without_torch() -> None:
    probe = "import sys, clipdistill.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_version() -> None:
    assert clipdistill("--version").stdout.strip() == __version__


def test_params_prints_every_value_with_its_meaning() -> None:
    result = clipdistill("params")
    assert "threshold: 0.0" in result.stdout
    assert "zeta" in result.stdout
    assert json.loads(clipdistill("params", "--json").stdout)["views"]["global"] == {"resize": "open_clip"}


def test_refused_params_are_one_message_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("evaluate: {top_k: 0}")
    result = clipdistill("params", cwd=tmp_path)
    assert result.returncode == 2
    assert "evaluate.top_k" in result.stderr
    assert "Traceback" not in result.stderr


def test_show_checks_and_describes_an_artifact(tmp_path: Path) -> None:
    store.write_group(tmp_path / "a.zarr", {"x": np.zeros((3, 2), np.float32)}, {"kind": "test"})
    report = json.loads(clipdistill("show", str(tmp_path / "a.zarr")).stdout)
    assert report["arrays"] == {"x": "float32 [3, 2]"}
    assert report["provenance"]["kind"] == "test"
    next(file for file in (tmp_path / "a.zarr" / "x" / "c").rglob("*") if file.is_file()).write_bytes(b"")
    result = clipdistill("show", str(tmp_path / "a.zarr"))
    assert result.returncode == 4
    assert "has 0 bytes" in result.stderr


@pytest.mark.slow
def test_models_lists_published_weights() -> None:
    result = clipdistill("models", "RN50x64")
    assert result.stdout.split() == ["RN50x64", "openai", "RN50x64-quickgelu", "openai"]
    assert clipdistill("models", "no-such-model").returncode == 1


def test_summary_ranks_the_methods(tmp_path: Path) -> None:
    for name, value in {"teacher": 66.0, "cdul": 93.0, "supervised": None}.items():
        store.write_json(tmp_path / f"{name}.json", {"val": {"mAP": value, "CF1": 50.0, "OF1": 51.0}})
    store.write_json(tmp_path / "labels" / "cdul.json", {"train": {"global_mAP": 65.5, "final_mAP": 88.0}})
    lines = clipdistill("summary", str(tmp_path)).stdout.splitlines()
    assert [line.split()[-3] for line in lines[1:4]] == ["-", "66.00", "93.00"]
    assert any("first labels" in line and "88.00" in line for line in lines)


def test_summary_without_metrics_says_what_to_run(tmp_path: Path) -> None:
    result = clipdistill("summary", str(tmp_path))
    assert result.returncode == 4
    assert "dvc repro" in result.stderr


def test_show_describes_a_student_and_names_what_is_neither(tmp_path: Path) -> None:
    params = StudentParams(output_stride=32, backbone="shufflenet_v2_x0_5", image_size=64)
    student = classifier.build(params, 2, 0)
    model_folder.save(tmp_path, student, student_yaml.Card.of(student, params, "sigmoid", ["dog", "cat"], {}))
    shown = json.loads(clipdistill("show", str(tmp_path)).stdout)
    assert (shown["backbone"], shown["classes"]) == ("shufflenet_v2_x0_5", ["dog", "cat"])
    (tmp_path / "other").mkdir()
    refused = clipdistill("show", str(tmp_path / "other"))
    assert refused.returncode == 4
    assert "is no Zarr artifact, and no folder of a student or an adapter" in refused.stderr
    assert "remove" not in refused.stderr


def test_show_describes_an_adapter_and_refuses_a_damaged_card(tmp_path: Path) -> None:
    sums = {"adapter_config.json": "a", "adapter_model.safetensors": "b"}
    card = {"sha256": sums, "weights": "c", "change": 1.5, "provenance": {"lora": {"rank": 4}}}
    (tmp_path / "adapter.yaml").write_text(json.dumps(card))
    assert json.loads(clipdistill("show", str(tmp_path)).stdout) == card
    (tmp_path / "adapter.yaml").write_text(json.dumps(card | {"change": -1}))
    refused = clipdistill("show", str(tmp_path))
    assert (refused.returncode, "is no card of an adapter (change:" in refused.stderr) == (4, True)
