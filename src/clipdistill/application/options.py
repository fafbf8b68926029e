"""Options and arguments of the commands: what --help says of them, and what the shell completes.

Typer prints a default in its own way, `[default: (64)]`; where the default is no plain value, the help says it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from clipdistill.application.formats import WRITERS

DEVICES = ("auto", "cpu", "cuda")


def _starting(values: Iterable[str]) -> Callable[[str], list[str]]:
    """What completes a value in the shell."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


Model: TypeAlias = Annotated[
    Path,
    typer.Argument(help="Model folder, for example cache/scenes/models/cdul.", show_default=False, metavar="MODEL"),
]
Device: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Where it runs. [default: as compute.yaml has it, or auto]",
        show_default=False,
        metavar="|".join(DEVICES),
        autocompletion=_starting(DEVICES),
    ),
]
BatchSize: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Images a forward pass. [default: 64]", show_default=False, metavar="N")
]
Adapter: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder of an adapter for CLIP, as train@ttd leaves it. [default: clip.adapter]",
        show_default=False,
        metavar="FOLDER",
    ),
]
ClipModel: TypeAlias = Annotated[
    str | None,
    typer.Option("--model", help="open_clip's architecture. [default: clip.model]", show_default=False, metavar="NAME"),
]
Pretrained: TypeAlias = Annotated[
    str | None,
    typer.Option(help="open_clip's tag of weights. [default: clip.pretrained]", show_default=False, metavar="TAG"),
]
Weights: TypeAlias = Annotated[
    Path | None, typer.Option(help="File of weights. [default: clip.weights]", show_default=False, metavar="FILE")
]
Photo: TypeAlias = Annotated[Path, typer.Argument(help="Image file.", show_default=False, metavar="IMAGE")]
Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", "-q", help="No progress: errors alone on stderr.")]
Verbose: TypeAlias = Annotated[bool, typer.Option("--verbose", "-v", help="Say what runs where, and how long.")]
Paths: TypeAlias = Annotated[
    list[str],
    typer.Argument(help="Images, folders of them, and patterns.", show_default=False, metavar="PATH"),
]
Form: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="How the results are written. [default: table on a terminal; else as the output's name ends, or csv]",
        show_default=False,
        metavar="|".join(WRITERS),
        autocompletion=_starting(WRITERS),
    ),
]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File for the results. [default: stdout]", show_default=False, metavar="FILE"),
]
Labels: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Labels to ask a student of open vocabulary for, one a line. [default: those it was trained on]",
        show_default=False,
        metavar="FILE",
    ),
]
TopK: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="So many classes an image. [default: those from their threshold on]",
        show_default=False,
        metavar="K",
    ),
]
Threshold: TypeAlias = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Score from which any class is listed. [default: each class's own]",
        show_default=False,
        metavar="SCORE",
    ),
]
