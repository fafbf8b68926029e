"""docs/robustness.md: every test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(?:\w+::)?(test_\w+)(?:\[[^]`]*\])?`")


def functions_of(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_names_is_there() -> None:
    text = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    named = set(NAMED.findall(text))
    assert len(named) > 80
    assert {(file, name) for file, name in named if name not in functions_of(ROOT / file)} == set()


def test_every_row_of_its_tables_names_one() -> None:
    text = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    others = re.compile(r"\| (---|input|fault|what|survivors|[0-9]+) ")
    bare = [row for row in rows if not NAMED.search(row) and not others.match(row)]
    assert bare == []
