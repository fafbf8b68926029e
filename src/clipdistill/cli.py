"""What a person types. Heavy libraries are imported inside the commands, so that --help answers at once."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from clipdistill import __version__, params
from clipdistill.application import commands
from clipdistill.errors import ArtifactError, ClipdistillError, printable

# What a disk says to whom writes to an open file.
_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)

app = typer.Typer(
    help="Distil CLIP into a small multi-label classifier: images and class names in, no labels needed.\n\n"
    "The pipeline itself is run by DVC: `dvc repro`, `dvc exp run -S KEY=VALUE`, `dvc metrics show`. Its students are "
    "put to use by `predict`, `heatmap`, `calibrate` and `export`; `teacher` asks CLIP itself. `COMMAND --help` has "
    "examples.",
    epilog=commands.EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; a problem that a person can mend is printed as its text alone."""
    try:
        app()
    except ClipdistillError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        # A name that is too long, a folder that may not be read: named by the system, and no fault of the program.
        if error.filename is None and error.errno not in _OF_OUTPUT:
            raise
        where = "the standard output" if error.filename is None else printable(os.fsdecode(error.filename))
        sys.stderr.write(f"error: {where}: {error.strerror}\n")
        # What is left in the buffer could not be written either, and Python would say so once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(ClipdistillError.exit_code)


commands.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    pass


@app.command("params")
def print_params(
    path: Annotated[Path, typer.Argument(help="Parameter file.", metavar="FILE")] = params.PARAMS_FILE,
    as_json: Annotated[bool, typer.Option("--json", help="Values alone, as JSON.")] = False,
) -> None:
    """Check a parameter file and print every parameter as it resolves, with what it means.

    Example: clipdistill params
    """
    resolved = params.load(path)
    if as_json:
        typer.echo(json.dumps(resolved.model_dump(by_alias=True), indent=2))
        return
    for line in _document(resolved, 0):
        typer.echo(line)


def _document(section: BaseModel, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        key, value = field.alias or name, getattr(section, name)
        if isinstance(value, BaseModel):
            description = (type(value).__doc__ or "").splitlines()[0]
            yield f"{indent}{key}:  # {description}"
            yield from _document(value, depth + 1)
        else:
            stated = f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}"
            yield f"{stated:<40}  # {field.description}"


@app.command("models")
def list_models(
    pattern: Annotated[str, typer.Argument(help="Part of a name; all without it.", metavar="PART")] = "",
) -> None:
    """List the CLIP models that open_clip knows, each with its published weights (clip.model, clip.pretrained).

    Example: clipdistill models RN50
    """
    import open_clip  # noqa: PLC0415

    tags: dict[str, list[str]] = {}
    for model, tag in open_clip.list_pretrained():
        tags.setdefault(model, []).append(tag)
    found = [name for name in open_clip.list_models() if pattern.lower() in name.lower()]
    if not found:
        raise ClipdistillError(f"open_clip knows no model with {pattern!r} in its name")
    # Those that can be had first.
    for name in sorted(found, key=lambda name: name not in tags):
        typer.echo(f"{name:<32} {', '.join(tags.get(name, ['(no published weights)']))}")


@app.command("show")
def show_artifact(
    path: Annotated[
        Path, typer.Argument(help="Folder of a Zarr artifact, of a student, or of an adapter.", metavar="FOLDER")
    ],
) -> None:
    """Check every byte of an artifact and print its arrays and what it was made from.

    Of a student or an adapter, print what its card says.

    Example: clipdistill show cache/scenes/train/global.zarr
    """
    from clipdistill import store  # noqa: PLC0415
    from clipdistill.clip import adapter_folder  # noqa: PLC0415
    from clipdistill.students import open_card, student_yaml  # noqa: PLC0415

    cards: dict[str, Callable[[Path], Any]] = {
        student_yaml.FILE: lambda folder: student_yaml.read(folder).model_dump(),
        open_card.FILE: lambda folder: open_card.read(folder).model_dump(),
        adapter_folder.CARD: _card_of_an_adapter,
    }
    for name, read in cards.items():
        if (path / name).is_file():
            typer.echo(json.dumps(read(path), indent=2, ensure_ascii=False))
            return
    if not (path / store.MANIFEST).exists() and not (path / "zarr.json").exists():
        raise ArtifactError(
            f"{path} is no Zarr artifact, and no folder of a student or an adapter: `clipdistill show --help`"
        )
    group = store.read_group(path)
    report: dict[str, Any] = {"arrays": group.layout(), "provenance": group.provenance}
    typer.echo(json.dumps(report, indent=2, ensure_ascii=False))


def _card_of_an_adapter(folder: Path) -> object:
    from clipdistill import yaml_text  # noqa: PLC0415
    from clipdistill.clip import adapter_folder  # noqa: PLC0415

    adapter_folder.read_card(folder)
    # With what it was trained from, which nothing reads but people.
    return yaml_text.read(folder / adapter_folder.CARD)


@app.command("summary")
def print_summary(
    folder: Annotated[Path, typer.Argument(help="Folder of the metrics files.", metavar="FOLDER")] = Path("metrics"),
) -> None:
    """Print the methods side by side, and how good their labels are. `dvc metrics show` has all figures.

    Example: clipdistill summary
    """
    from clipdistill.evaluation import summary  # noqa: PLC0415

    typer.echo(summary.render(folder))


@app.command("mend")
def mend_dvc(
    folder: Annotated[Path, typer.Argument(help="The project.", metavar="FOLDER")] = Path(),
) -> None:
    """Put right what a killed DVC left half written, where `dvc repro` fails ever after. Nothing else is touched.

    Example: clipdistill mend && dvc repro
    """
    from clipdistill import dvc_records  # noqa: PLC0415

    for removed in dvc_records.mend(folder) or ["nothing to mend"]:
        typer.echo(removed)
