"""Which of the project's own modules a stage script imports, followed through all of them."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "clipdistill"

# Modules that no byte of an artifact depends on: values of parameters are tracked one by one in dvc.yaml, texts of
# errors, log lines, file names and the number of processes do not reach an artifact, and YAML is read or refused.
NOT_TRACKED = {"__init__.py", "errors.py", "params.py", "stage.py", "distributed.py", "yaml_text.py"}


def modules_of(script: Path) -> set[str]:
    """Paths below the repository of every module that the script imports, directly or not, and of itself."""
    found: set[Path] = set()
    waiting = [script.resolve()]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        waiting.extend(imports_of(file))
    tracked = (file for file in found if not (file.parent == PACKAGE and file.name in NOT_TRACKED))
    return {file.relative_to(ROOT).as_posix() for file in tracked if not _is_only_docstring(file)}


def imports_of(file: Path) -> list[Path]:
    files: list[Path] = []
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hidden = {id(node) for branch in ast.walk(tree) if _is_type_checking(branch) for node in ast.walk(branch)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        files.extend(path for name in names if name.split(".")[0] == "clipdistill" for path in _files(name))
    return files


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _files(name: str) -> list[Path]:
    base = PACKAGE.joinpath(*name.split(".")[1:])
    candidates = [base.with_suffix(".py"), base / "__init__.py"]
    parents = [parent / "__init__.py" for parent in base.parents if parent == PACKAGE or PACKAGE in parent.parents]
    return [file for file in [*candidates, *parents] if file.is_file()]


def _is_only_docstring(file: Path) -> bool:
    return file.name == "__init__.py" and len(ast.parse(file.read_text(encoding="utf-8")).body) <= 1
