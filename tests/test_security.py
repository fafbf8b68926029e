"""What no file of the project does: run code, or a shell, on what it reads."""

from __future__ import annotations

import ast
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


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def faults_of(source: str) -> Iterator[str]:
    """Calls in Python text that must not be there."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
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
    ],
)
def test_each_kind_is_seen(source: str) -> None:
    assert list(faults_of(source))


def test_nothing_that_is_read_is_run() -> None:
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    found = {str(file.relative_to(ROOT)): list(faults_of(file.read_text(encoding="utf-8"))) for file in files}
    assert {file: faults for file, faults in found.items() if faults} == {}
    assert len(found) > 100
    # yaml_text.read takes its loader as an argument, of a type that mypy checks.
    assert issubclass(params._Loader, yaml.SafeLoader)
    assert issubclass(yaml_text.PlainLoader, yaml.SafeLoader)
