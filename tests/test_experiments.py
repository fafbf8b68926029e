"""The published settings in experiments/: what `experiments/run` hands to `dvc exp run`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from clipdistill import params

ROOT = Path(__file__).resolve().parents[1]
METHODS = ["cdul", "ccd", "ccd-defaults"]
DATASETS = ["voc07", "voc12", "coco14", "nuswide", "nuswide-official", "nuswide-open"]
PAIRS = [(method, dataset) for method in METHODS for dataset in DATASETS]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The folder experiments/ beside params.yaml, where a program named dvc writes down what it is given."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    recorder = tmp_path / "bin" / "dvc"
    recorder.parent.mkdir()
    recorder.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\" > given\n")
    recorder.chmod(0o755)
    for command in ("init --quiet", "add params.yaml", "commit --quiet --message=state"):
        git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com"]
        subprocess.run([*git, *command.split()], cwd=tmp_path, check=True)
    return tmp_path


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(checkout / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [str(checkout / "experiments" / "run"), *arguments]
    return subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)


def resolve(checkout: Path, *arguments: str) -> tuple[list[str], params.Params]:
    """Words for DVC besides the overrides, and the parameters that these make."""
    for name in ("coco", "nuswide"):
        (checkout / "data" / "raw" / name).mkdir(parents=True, exist_ok=True)
    result = run(checkout, *arguments)
    assert result.returncode == 0, result.stderr
    words = (checkout / "given").read_text().removesuffix("\0").split("\0")
    assert words[:2] == ["exp", "run"]
    flags = [index for index, word in enumerate(words) if word == "-S"]
    overrides = [words[index + 1] for index in flags]
    apply_overrides(checkout / "params.yaml", overrides)
    others = [word for index, word in enumerate(words[2:], 2) if index not in flags and index - 1 not in flags]
    return others, params.load(checkout / "params.yaml")


@pytest.mark.parametrize(("method", "dataset"), PAIRS)
def test_a_setting_is_lawful_and_its_own(checkout: Path, method: str, dataset: str) -> None:
    others, found = resolve(checkout, method, dataset, "--dry", "evaluate@cdul")
    assert others == ["--dry", "evaluate@cdul"]
    assert found.dataset.name == dataset
    assert (found.clip.source, found.clip.model, found.train.student.weights) == ("open_clip", "RN50x64", "imagenet")
    assert found.train.student.backbone == ("resnet101" if method == "cdul" else "resnet50")
    assert (checkout / found.dataset.root).is_dir()


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize(
    ("method", "norm", "loss"), [("mkt", "cosine", "log_sum_exp"), ("mkt-release", "label", "rank")]
)
def test_mkt_has_its_published_size(checkout: Path, method: str, dataset: str, norm: str, loss: str) -> None:
    target = "stages/mkt/dvc.yaml:model@mkt"
    others, found = resolve(checkout, method, dataset, target)
    assert others == [target]
    assert (found.clip.model, found.mkt.student.image_size, found.mkt.k) == ("ViT-B-16", "clip", 16)
    assert (found.mkt.norm, found.mkt.loss, found.mkt.prompt) == (norm, loss, "there is a {} in the scene")


@pytest.mark.parametrize(
    ("dataset", "vocabulary"),
    [
        ("voc07", "voc-15-5"),
        ("voc12", "voc-15-5"),
        ("coco14", "coco-48-17"),
        ("nuswide-official", "auto"),
        ("nuswide-open", "nuswide-925-81"),
    ],
)
def test_a_data_set_has_the_open_vocabulary_that_needs_no_other_files(
    checkout: Path, dataset: str, vocabulary: str
) -> None:
    assert resolve(checkout, "cdul", dataset)[1].dataset.open_vocabulary == vocabulary


@pytest.mark.parametrize("dataset", DATASETS)
def test_cdul_has_the_batch_of_its_data_set(checkout: Path, dataset: str) -> None:
    found = resolve(checkout, "cdul", dataset)[1]
    assert found.train.recipe.batch_size == (8 if dataset.startswith("voc") else 16)
    assert found.prompts.templates == ["a photo of a {}"]
    assert (found.train.recipe.epochs, found.train.recipe.learning_rate) == (20, 1e-5)


@pytest.mark.parametrize(("dataset", "classes"), [("voc07", 20), ("voc12", 20), ("coco14", 80), ("nuswide", 81)])
def test_ccd_has_a_floor_of_one_over_the_classes(checkout: Path, dataset: str, classes: int) -> None:
    assert resolve(checkout, "ccd", dataset)[1].ccd.floor == pytest.approx(1 / classes)


@pytest.mark.parametrize(
    ("method", "expected"),
    [("ccd-defaults", (8, 0.0625, 0.8, 0.1, 0.8, 0.0)), ("ccd", (16, 0.125, 3.0, 1.0, 0.2, 1 / 20))],
)
def test_the_two_sets_of_the_released_code_are_not_mixed(
    checkout: Path, method: str, expected: tuple[float, ...]
) -> None:
    found = resolve(checkout, method, "voc12")[1]
    ccd = found.ccd
    own = (ccd.localize.margin, ccd.train.boost, ccd.train.unsure_weight, ccd.ratio, ccd.floor)
    assert (found.train.recipe.batch_size, *own) == expected
    assert found.prompts.templates == ["a photo of the {}"]
    assert (ccd.update_rounds, ccd.train.warmup_epochs, ccd.train.epochs) == (1, 2, 8)


@pytest.mark.parametrize("words", [(), ("cdul",), ("voc12",), ("cdul", "voc13"), ("tdt", "voc12")])
def test_what_is_unknown_is_refused_with_the_names_of_what_is_there(checkout: Path, words: tuple[str, ...]) -> None:
    result = run(checkout, *words)
    assert result.returncode == 2
    for name in [*METHODS, *DATASETS]:
        assert name in result.stderr
    assert not (checkout / "given").exists()


@pytest.mark.parametrize("dataset", ["coco14", "voc12"])
def test_ttd_has_captions_and_masks_of_its_own(checkout: Path, dataset: str) -> None:
    target = "stages/ttd/dvc.yaml:evaluate@ttd"
    _, found = resolve(checkout, "ttd", dataset, target)
    assert (found.clip.model, found.ttd.image_size, found.ttd.segment.window) == ("ViT-B-16", "clip", "clip")
    assert (found.ttd.captions.reader, found.ttd.captions.root) == ("coco", "data/raw/coco")
    assert found.ttd.segment.reader == {"coco14": "coco", "voc12": "voc"}[dataset]
    assert found.ttd.segment.scales == [1.0, 0.5, 1.5, 2.0]


def test_ttd_without_captions_is_refused(checkout: Path) -> None:
    result = run(checkout, "ttd", "nuswide")
    assert result.returncode == 2
    assert "ttd-nuswide.args" in result.stderr


def test_a_setting_is_not_mixed_with_what_another_left(checkout: Path) -> None:
    resolve(checkout, "ccd", "voc12")
    (checkout / "given").unlink()
    result = run(checkout, "cdul", "voc12")
    assert result.returncode == 2
    assert "git restore --staged --worktree params.yaml" in result.stderr
    assert not (checkout / "given").exists()


def test_a_setting_that_did_not_end_well_goes_on_by_the_same_command(checkout: Path) -> None:
    """As DVC leaves params.yaml where a stage fails, and where it is killed."""
    words = ("cdul", "voc12", "-S", "train.recipe.epochs=3", "--set-param=evaluate.top_k=5", "-Sscenes.seed=4")
    resolve(checkout, *words)
    apply_overrides(checkout / "params.yaml", ["evaluate.top_k=5", "scenes.seed=4"])
    (checkout / "given").unlink()
    assert run(checkout, *words).returncode == 0
    assert (checkout / "given").exists()
    assert run(checkout, "cdul", "voc12").returncode == 2


def test_a_data_set_that_is_not_there_is_asked_for_before_anything_is_made(checkout: Path) -> None:
    result = run(checkout, "cdul", "coco14")
    assert result.returncode == 2
    assert "data/raw/coco/ is missing" in result.stderr
    assert not (checkout / "data").exists()
    assert not (checkout / "given").exists()


@pytest.mark.parametrize("form", [["-S", "dataset.root='data/mine'"], ["-Sdataset.root=data/mine"]])
def test_a_data_set_may_lie_elsewhere(checkout: Path, form: list[str]) -> None:
    result = run(checkout, "cdul", "coco14", *form)
    assert "data/mine/ is missing" in result.stderr
    (checkout / "data" / "mine").mkdir(parents=True)
    assert run(checkout, "cdul", "coco14", *form).returncode == 0
    assert (checkout / "given").exists()


@pytest.mark.parametrize("word", ["foo", "no.such=1"])
def test_an_override_that_is_none_is_told_from_a_changed_file(checkout: Path, word: str) -> None:
    resolve(checkout, "cdul", "voc12")
    (checkout / "given").unlink()
    result = run(checkout, "cdul", "voc12", "-S", word)
    assert result.returncode == 2
    assert word.partition("=")[0].split(".")[0] in result.stderr
    assert "Traceback" not in result.stderr
    assert not (checkout / "given").exists()


def test_without_a_commit_there_is_no_experiment(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    result = run(checkout, "cdul", "voc12")
    assert (result.returncode, "git checkout" in result.stderr) == (2, True)
    assert "Traceback" not in result.stderr


def test_the_exit_code_is_that_of_dvc(checkout: Path) -> None:
    (checkout / "bin" / "dvc").write_text("#!/bin/sh\nexit 255\n")
    assert run(checkout, "cdul", "voc12").returncode == 255
