"""The presets in experiments/: what `xargs dvc exp run` would make of them."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from clipdistill import params

ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted((ROOT / "experiments").glob("*.args"))


def resolve(preset: Path, folder: Path) -> params.Params:
    words = shlex.split(preset.read_text())
    assert set(words[::2]) == {"-S"}
    shutil.copy(ROOT / "params.yaml", folder)
    apply_overrides(folder / "params.yaml", words[1::2])
    return params.load(folder / "params.yaml")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_lawful(preset: Path, tmp_path: Path) -> None:
    assert resolve(preset, tmp_path).clip.source == "open_clip"


def test_the_two_sets_of_the_released_code_are_not_mixed(tmp_path: Path) -> None:
    defaults, script = (
        resolve(ROOT / "experiments" / f"ccd-release-{name}.args", tmp_path) for name in ("defaults", "voc12")
    )
    for found, expected in (
        (defaults, (8, 0.0625, 0.8, 0.1, 0.8, 0.0)),
        (script, (16, 0.125, 3.0, 1.0, 0.2, 1 / 20)),
    ):
        ccd = found.ccd
        own = (ccd.localize.margin, ccd.train.boost, ccd.train.unsure_weight, ccd.ratio, ccd.floor)
        assert (found.train.recipe.batch_size, *own) == expected
        assert found.prompts.templates == ["a photo of the {}"]
        assert (ccd.update_rounds, ccd.train.warmup_epochs, ccd.train.epochs) == (1, 2, 8)
