"""YAML from files: plain values, or one kind of error whatever the text holds.

PyYAML's safe loader runs no code, but lets through what the constructors of numbers and dates raise, and follows
aliases: a few lines of them are a structure of any size. What programs write has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class PlainLoader(yaml.SafeLoader):
    """YAML 1.1 without aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Make the next node of the document, unless it is an alias of an earlier one."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not read here", mark)
        return super().compose_node(parent, index)


def read(path: Path, loader: type[yaml.SafeLoader] = PlainLoader) -> Any:  # noqa: ANN401 - any tree of plain values
    """Read a YAML file.

    Args:
        path: UTF-8 text.
        loader: a safe one.

    Returns:
        What the file says: None where it is empty.

    Raises:
        OSError: it cannot be read.
        yaml.YAMLError: it is no YAML, not UTF-8, nested too deeply, or a value in it cannot be had.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    # UnicodeDecodeError is a ValueError.
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}") from None
