"""dvc.yaml against the code: every stage depends on the very modules it imports, and on the parameters that exist."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from import_graph import PACKAGE, ROOT, imports_of, modules_of

from clipdistill import params

FILES = ["dvc.yaml", "stages/scenes/dvc.yaml", "stages/ccd/dvc.yaml", "stages/dense/dvc.yaml"]
FILES += ["stages/mkt/dvc.yaml", "stages/ttd/dvc.yaml"]
ROOMS = ["cli", "application", "training", "clip", "students", "datasets", "evaluation", "methods"]
FOUNDATION = [
    "stage",
    "dvc_records",
    "work",
    "store",
    "layout",
    "distributed",
    "params",
    "yaml_text",
    "errors",
    "__init__",
]


def stages() -> Iterator[tuple[str, dict[str, object]]]:
    for file in FILES:
        for name, stage in yaml.safe_load((ROOT / file).read_text())["stages"].items():
            yield f"{file}:{name}", stage.get("do", stage)


STAGES = dict(stages())


def script_of(stage: dict[str, object]) -> Path:
    words = str(stage["cmd"]).split()
    assert words[0] == "stages/run"
    return ROOT / "stages" / f"{words[1]}.py"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_modules_it_imports(name: str) -> None:
    stage = STAGES[name]
    declared = {dep for dep in stage["deps"] if str(dep).endswith(".py")}
    assert declared == modules_of(script_of(stage)), "set these as the stage's deps in dvc.yaml"


@pytest.mark.parametrize("name", STAGES)
def test_no_parameter_is_part_of_a_command(name: str) -> None:
    """DVC hands commands to a shell, and puts values into them as they are: `$(...)` in params.yaml would run."""
    assert set(re.findall(r"\$\{.*?\}", str(STAGES[name]["cmd"]))) <= {"${item}", "${key}"}


def _keys(model: type, prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        found.add(key)
        if isinstance(field.annotation, type) and issubclass(field.annotation, params.Section):
            found |= _keys(field.annotation, f"{key}.")
    return found


@pytest.mark.parametrize("name", STAGES)
def test_tracked_parameters_exist(name: str) -> None:
    tracked = {str(key).replace("${key}", "global").replace("${item}", "cam") for key in STAGES[name].get("params", [])}
    tracked = {key for key in tracked if "${" not in key}
    assert tracked <= _keys(params.Params)


def test_params_yaml_states_every_parameter() -> None:
    stated = yaml.safe_load((ROOT / "params.yaml").read_text())

    def flat(tree: dict[str, object], prefix: str = "") -> set[str]:
        keys = set()
        for key, value in tree.items():
            keys.add(f"{prefix}{key}")
            if isinstance(value, dict) and f"{prefix}{key}" != "dataset.prompt_names":
                keys |= flat(value, f"{prefix}{key}.")
        return keys

    assert flat(stated) == _keys(params.Params)
    assert params.load(ROOT / "params.yaml")


def _room(file: Path) -> int:
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return (ROOMS + FOUNDATION).index(part)


def test_imports_run_downward() -> None:

    wrong = [
        f"{file.relative_to(PACKAGE)} imports {target.relative_to(PACKAGE)}"
        for file in PACKAGE.rglob("*.py")
        for target in imports_of(file)
        if _room(target) < _room(file)
    ]
    assert wrong == []
