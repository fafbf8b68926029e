"""Errors that a person can act on.

Everything the project refuses is a `ClipdistillError`. The command line and the stages print its text alone and exit
with its code; any other exception is a fault of the program and keeps its traceback.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape line breaks, control characters and undecodable bytes, so that a name fits one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ClipdistillError(Exception):
    """A problem outside the program: its text says what was wrong, where, and what to do."""

    exit_code = 1


class ParamsError(ClipdistillError):
    """A parameter that is unknown, of a wrong type or out of range."""

    exit_code = 2


class DataError(ClipdistillError):
    """A raw data set that cannot be read: a missing, broken or contradictory file."""

    exit_code = 3


class ArtifactError(ClipdistillError):
    """A cached artifact that is incomplete, altered, or made from other inputs than the reader expects."""

    exit_code = 4


class TeacherError(ClipdistillError):
    """A CLIP model that cannot be loaded, or whose weights are not those that the parameters name."""

    exit_code = 5
