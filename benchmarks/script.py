"""What every benchmark script does around its measurement: refuse what is too small, report, and end."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from clipdistill.errors import ClipdistillError, ParamsError


def refuse_too_small(options: argparse.Namespace) -> argparse.Namespace:
    """Hand the options on, if every whole number among them is at least 1, and the seed at least 0.

    Raises:
        ParamsError: one is smaller; the text names it.
    """
    for name, value in vars(options).items():
        numbers = value if isinstance(value, list | tuple) else [value]
        lowest = 0 if name == "seed" else 1
        if any(isinstance(number, int) and number < lowest for number in numbers):
            raise ParamsError(f"--{name.replace('_', '-')}: {value} is too small, {lowest} is the least")
    return options


def report(run: Callable[[], dict[str, Any]]) -> int:
    """Run a benchmark and print its result as the last line; returns the exit code."""
    try:
        print(json.dumps(run()))
    except ClipdistillError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
