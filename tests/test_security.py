"""What no file of the project does: run code, or a shell, on what it reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from clipdistill import params, yaml_text

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "stages", "benchmarks", "experiments")

# By the end of the dotted name: what runs code or a shell, unpickles, or unpacks archives as they say.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "joblib.load"),
    *("yaml.unsafe_load", "yaml.full_load", "shutil.unpack_archive"),
}
UNPACKING = {"extract", "extractall"}

# Modules whose very import needs a reason: `students/weights.py` catches what pickle raises.
UNPICKLERS = {"pickle", "dill", "cloudpickle", "marshal", "joblib", "shelve", "runpy"}
MAY_IMPORT = {"src/clipdistill/students/weights.py": {"pickle"}}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def imported(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for, dotted."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {item.asname: item.name for item in node.names if item.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {item.asname or item.name: f"{node.module}.{item.name}" for item in node.names}
    return found


def imports_faults(tree: ast.AST, allowed: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [item.name for item in node.names]
            for name in {name.split(".")[0] for name in names} & (UNPICKLERS - allowed):
                yield f"{node.lineno}: import of {name}"


def faults_of(source: str, allowed: set[str] | None = None) -> Iterator[str]:
    """Imports and calls in Python text that must not be there; a name that was imported stands for what it is."""
    tree = ast.parse(source)
    stands_for = imported(tree)
    yield from imports_faults(tree, allowed or set())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, *rest = name_of(node.func).split(".")
        name = ".".join([stands_for.get(first, first), *rest])
        command = ast.unparse(node.args[0]) if node.args else ""
        if name.startswith("subprocess.") and re.match(r"\[['\"](ba|da|z)?sh['\"], ['\"]-c", command):
            yield f"{node.lineno}: a shell"
        if name.endswith("read_pickle"):
            yield f"{node.lineno}: {name}"
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in FORBIDDEN or name.split(".")[-1] in UNPACKING or words.get("shell", "False") != "False":
            yield f"{node.lineno}: {name}"
        if name == "torch.load" and words.get("weights_only") != "True":
            yield f"{node.lineno}: torch.load without weights_only=True"
        if name == "yaml.load" and words.get("Loader") not in ("loader", "yaml.SafeLoader"):
            yield f"{node.lineno}: yaml.load with another loader"
        if words.get("allow_pickle", "False") != "False":
            yield f"{node.lineno}: {name} with allow_pickle"


@pytest.mark.parametrize(
    "source",
    [
        "os.system(f'rm {name}')",
        "subprocess.run(f'rm {name}', shell=True)",
        "eval(text)",
        "pickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "archive.extractall(folder)",
        "from pickle import loads; loads(data)",
        "import pickle as p; p.loads(data)",
        "from os import system; system(text)",
        "from torch import load; load(path)",
        "import torch as t; t.load(path)",
        "subprocess.run(['sh', '-c', f'rm {name}'])",
        "import dill; dill.loads(data)",
        "pd.read_pickle(path)",
        "import runpy; runpy.run_path(path)",
    ],
)
def test_each_kind_is_seen(source: str) -> None:
    assert list(faults_of(source))


def test_nothing_that_is_read_is_run() -> None:
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    named = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}
    found = {name: list(faults_of(text, MAY_IMPORT.get(name))) for name, text in named.items()}
    assert {file: faults for file, faults in found.items() if faults} == {}
    assert len(found) > 100
    # yaml_text.read takes its loader as an argument, of a type that mypy checks.
    assert issubclass(params._Loader, yaml.SafeLoader)
    assert issubclass(yaml_text.PlainLoader, yaml.SafeLoader)
