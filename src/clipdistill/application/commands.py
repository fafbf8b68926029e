"""The commands of a trained student. Heavy libraries are imported inside them, so that --help answers at once."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from clipdistill import params
from clipdistill.application.formats import WRITERS, Format, columns
from clipdistill.application.options import (
    DEVICES,
    Adapter,
    BatchSize,
    ClipModel,
    Device,
    Form,
    Labels,
    Model,
    Output,
    Paths,
    Photo,
    Pretrained,
    Quiet,
    Threshold,
    TopK,
    Verbose,
    Weights,
)
from clipdistill.distributed import Compute
from clipdistill.errors import ParamsError, printable

EXIT_CODES = (
    "Exit codes: 0 all done; 1 something could not be done, such as an image that cannot be read (the others are "
    "done); 2 a wrong option or parameter; 3 raw data; 4 a missing, broken or foreign artifact, such as a model "
    "folder; 5 a CLIP that cannot be loaded; 130 interrupted."
)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for name, command in (
        ("predict", predict),
        ("heatmap", heatmap),
        ("tags", tags),
        ("teacher", teacher),
        ("calibrate", calibrate),
        ("export", export),
    ):
        app.command(name)(command)


def predict(
    model: Model,
    paths: Paths,
    form: Form = None,
    output: Output = None,
    labels: Labels = None,
    top_k: TopK = None,
    threshold: Threshold = None,
    batch_size: BatchSize = None,
    device: Device = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say which classes are in images.

    Results go to stdout or a file, progress and problems to stderr. Images that cannot be read are listed at the end,
    and the exit code is then 1.

    For example:

      clipdistill predict cache/scenes/models/cdul photo.jpg

      clipdistill predict MODEL holiday/ "more/*.png" --output classes.csv

      clipdistill predict MODEL holiday/ --top-k 3 --format jsonl

      clipdistill predict cache/scenes/models/mkt photo.jpg --labels my_labels.txt
    """
    chosen = _format(form, output)
    if top_k is not None and threshold is not None:
        raise ParamsError("--top-k and --threshold both say which classes are listed; give one of them")
    compute = _compute(device, batch_size, quiet, verbose)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name is bytes, and leaves as it came.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    from clipdistill.application.predict import Listed, predict_files, result_file  # noqa: PLC0415

    with nullcontext(sys.stdout) if output is None else result_file(_output("--output", output)) as out:
        problems = predict_files(model, paths, out, chosen, Listed(top_k, threshold), compute, labels)
    if problems:
        typer.echo(f"{len(problems)} could not be read:", err=True)
        for problem in problems:
            typer.echo(f"  {problem}", err=True)
        raise typer.Exit(1)


def heatmap(
    model: Annotated[
        Path,
        typer.Argument(help="Model folder; with --tags there is none.", show_default=False, metavar="[MODEL]"),
    ],
    image: Annotated[Path | None, typer.Argument(help="Image file.", show_default=False, metavar="IMAGE")] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="Class to look for; for a student of open vocabulary, any words. [default: the highest score's]",
            show_default=False,
            metavar="NAME",
        ),
    ] = None,
    tags: Annotated[
        str | None,
        typer.Option(help="Words that CLIP itself looks for, between commas.", show_default=False, metavar="A,B,C"),
    ] = None,
    adapter: Adapter = None,
    clip: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="With --tags: open_clip's architecture. [default: clip.model]",
            show_default=False,
            metavar="NAME",
        ),
    ] = None,
    pretrained: Pretrained = None,
    weights: Weights = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="PNG file to write. [default: IMAGE's name with -heatmap.png, here]",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw where the student sees a class; or, with --tags, where CLIP sees some words.

    The picture is the image in gray under the map; bright is where the score comes from. CLIP is that of params.yaml.

    For example:

      clipdistill heatmap cache/scenes/models/cdul photo.jpg --class boat --out boat.png

      clipdistill heatmap photo.jpg --tags flame,smoke --adapter cache/scenes/ttd/adapter
    """
    photo = _photo_of_heatmap(model, image, name, tags, adapter or clip or pretrained or weights)
    compute = _compute(device, None, quiet, verbose)
    file = _output("--out", out or Path(f"{photo.stem}-heatmap.png"), "png")
    if tags is not None:
        from clipdistill.application.words_of_image import WordSight  # noqa: PLC0415

        names = _names("--tags", tags)
        best, picture = WordSight(_settings(adapter, clip, pretrained, weights), compute).locate(photo, names)
        _save_png(file, picture)
        _print(columns(["tag", "cosine"], [[word, f"{score:.3f}"] for word, score in zip(names, best, strict=True)]))
        typer.echo(printable(str(file)))
        return
    from clipdistill.application import heatmap as drawing  # noqa: PLC0415
    from clipdistill.application.student import load_any  # noqa: PLC0415

    # A student of open vocabulary is asked for those very words.
    student = load_any(model, None if name is None else [name], compute.device)
    drawn = drawing.heatmap(student, photo, name)
    _save_png(file, drawn.picture)
    typer.echo(f"{drawn.name} {drawn.score:.2f}: {printable(str(file))}")


def _photo_of_heatmap(
    model: Path, image: Path | None, name: str | None, tags: str | None, of_clip: Path | str | None
) -> Path:
    """The image among the arguments of `heatmap`, which with --tags has no model."""
    if tags is None:
        if of_clip is not None:
            raise ParamsError("--adapter, --model, --pretrained and --weights say which CLIP, and go with --tags")
        if image is None:
            raise ParamsError(f"IMAGE is missing: name a model folder and an image, or --tags and {model} alone")
        return image
    if image is not None:
        raise ParamsError(f"--tags asks CLIP itself, and takes an image alone; leave out {model}")
    if name is not None:
        raise ParamsError("--class is of a student and --tags of CLIP; give one of them")
    return model


def tags(
    image: Photo,
    caption: Annotated[str, typer.Option(help="Text whose words are looked for.", show_default=False, metavar="TEXT")],
    adapter: Adapter = None,
    model: ClipModel = None,
    pretrained: Pretrained = None,
    weights: Weights = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="PNG file to write. [default: IMAGE's name with -tags.png, here]", show_default=False, metavar="FILE"
        ),
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say which words of a caption an image shows, as CLIP sees it, and draw where.

    A word scores by the whole image, by the caption, and by the pixel that is most like it; the last chooses. CLIP,
    its adapter and the threshold are those of params.yaml, or the defaults where there is none.

    For example:

      clipdistill tags photo.jpg --caption "a boat near a house" --adapter cache/scenes/ttd/adapter
    """
    compute = _compute(device, None, quiet, verbose)
    file = _output("--out", out or Path(f"{image.stem}-tags.png"), "png")
    from clipdistill.application.words_of_image import WordSight  # noqa: PLC0415

    settings = _settings(adapter, model, pretrained, weights)
    scores, picture = WordSight(settings, compute).choose(image, caption)
    _save_png(file, picture)
    rows = [
        [item.word, *(f"{value:.3f}" for value in (item.image, item.text, item.pixel)), "yes" if item.chosen else ""]
        for item in scores
    ]
    _print(columns(["word", "image", "text", "pixel", "chosen"], rows))
    typer.echo(printable(str(file)))


def teacher(
    image: Photo,
    classes: Annotated[
        str, typer.Option(help="Names as a prompt says them, between commas.", show_default=False, metavar="A,B,C")
    ],
    adapter: Adapter = None,
    model: ClipModel = None,
    pretrained: Pretrained = None,
    weights: Weights = None,
    device: Device = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Ask CLIP itself about an image.

    It looks at the whole, at the snippets, and joins both, as the first labels are made.

    CLIP, prompts, snippets and temperature are those of params.yaml, or the defaults where there is none. Classes
    compete: name all that are to be told apart.

    For example:

      clipdistill teacher photo.jpg --classes "boat,tree,house"

      clipdistill teacher photo.jpg --classes "dog,cat" --model ViT-B-32 --pretrained openai
    """
    compute = _compute(device, None, quiet, verbose)
    from clipdistill.application.ask_teacher import ask_teacher  # noqa: PLC0415

    names = _names("--classes", classes)
    opinions = ask_teacher(image, names, _settings(adapter, model, pretrained, weights), compute)
    rows = [[o.name, *(f"{value:.3f}" for value in (o.whole, o.snippets, o.both))] for o in opinions]
    _print(columns(["class", "whole", "snippets", "both"], rows))


def _names(option: str, text: str) -> list[str]:
    """Different names between commas."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ParamsError(f"{option}: name at least one")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ParamsError(f"{option}: {', '.join(twice)} stands there more than once; name each once")
    return names


def _settings(
    adapter: Path | None, model: str | None = None, pretrained: str | None = None, weights: Path | None = None
) -> params.Params:
    """The parameters of this folder, or the defaults, with the CLIP and the adapter that the options name."""
    from clipdistill.application.ask_teacher import chosen_clip  # noqa: PLC0415

    settings = params.load() if params.PARAMS_FILE.exists() else params.Params()
    clip = chosen_clip(settings.clip, model, pretrained, weights)
    if adapter is not None:
        clip = clip.model_copy(update={"adapter": str(adapter)})
    changes: dict[str, Any] = {"clip": clip}
    if model is not None:
        # The side in the parameters is for their own CLIP.
        changes["ttd"] = settings.ttd.model_copy(update={"image_size": "clip"})
    return settings.model_copy(update=changes)


def _save_png(file: Path, picture: Any) -> None:  # noqa: ANN401 - Pillow is not loaded for --help
    from clipdistill import store  # noqa: PLC0415

    png = io.BytesIO()
    picture.save(png, format="PNG")
    store.write_atomically(file, png.getvalue())


def calibrate(
    model: Model,
    split: Annotated[
        Path,
        typer.Argument(
            help="Labelled split of the pipeline, for example data/scenes/val.", show_default=False, metavar="SPLIT"
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder to make: the student with its new thresholds.", show_default=False, metavar="FOLDER"),
    ],
    batch_size: BatchSize = None,
    device: Device = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Choose thresholds by ground truth.

    The student is written with them into a new folder. The thresholds of a fresh student were chosen by pseudo labels;
    a few hundred labelled images choose better ones.

    For example:

      clipdistill calibrate cache/scenes/models/cdul data/scenes/val --out calibrated
    """
    compute = _compute(device, batch_size, quiet, verbose)
    _require_parent("--out", out)
    from clipdistill.application import calibrate as calibration  # noqa: PLC0415

    before, after = calibration.calibrate(model, split, out, compute)
    rows = [
        [name, *("-" if value is None else f"{value:.2f}" for value in figures.values())]
        for name, figures in (("before", before), (str(out), after))
    ]
    _print(columns([f"percent, on {split}", *after], rows))


def export(
    model: Model,
    onnx: Annotated[Path, typer.Option(help="ONNX file to write.", show_default=False, metavar="FILE")],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the student as one ONNX file.

    uint8 pixels go in, scores and class activation maps come out. Normalisation and sigmoid are in the graph; the
    file's metadata say how an image becomes its input, and hold classes and thresholds. Where onnxruntime is installed,
    its outputs are compared with PyTorch's before anything is written.

    Needs the extra `onnx`: pip install 'clipdistill[onnx]'

    For example:

      clipdistill export cache/scenes/models/cdul --onnx student.onnx
    """
    _compute("cpu", None, quiet, verbose)
    file = _output("--onnx", onnx, "onnx")
    from clipdistill.application.export_onnx import export_onnx  # noqa: PLC0415
    from clipdistill.application.student import Student  # noqa: PLC0415

    difference = export_onnx(Student.load(model, "cpu"), file)
    compared = "not compared, onnxruntime is missing" if difference is None else f"within {difference:.1g} of PyTorch"
    typer.echo(f"{printable(str(file))}: {compared}")


def _format(asked: str | None, output: Path | None) -> Format:
    """The format that is asked for, or else the one that suits where the results go."""
    if output is None:
        suited = "table" if sys.stdout.isatty() else "csv"
    else:
        ending = output.suffix.lower().removeprefix(".")
        suited = "csv" if ending in ("", "txt") else ending
        if asked is None and suited not in WRITERS:
            raise ParamsError(
                f"--output: {output} does not end as a format is called; name it *.csv, *.json or *.jsonl, or give "
                "--format as well"
            )
    name = asked or suited
    for known in WRITERS:
        if name == known:
            return known
    raise ParamsError(f"--format: {name!r} is none of {', '.join(WRITERS)}")


def _output(option: str, named: Path, ending: str | None = None) -> Path:
    """The file that an option means, if it can be written: where it is a link, what that leads to.

    Files are written beside their place and renamed, which would put a file where a pipe or a device was.
    """
    file = named.resolve() if named.is_symlink() else named
    if ending is not None and file.suffix.lower() != f".{ending}":
        raise ParamsError(f"{option}: {file} does not end in .{ending}, as what is written there does")
    if file.is_dir():
        raise ParamsError(f"{option}: {file} is a folder; name a file in it")
    if file.exists() and not file.is_file():
        raise ParamsError(f"{option}: {file} is a pipe or a device; name a file, or send the standard output there")
    _require_parent(option, file)
    return file


def _require_parent(option: str, path: Path) -> None:
    """Refuse a path whose folder is not there, since a slip of the pen makes no folders, or cannot be written to."""
    if not path.parent.is_dir():
        raise ParamsError(f"{option}: there is no folder {path.parent}; make it, or name one that is there")
    if not os.access(path.parent, os.W_OK):
        raise ParamsError(f"{option}: nothing can be written to the folder {path.parent}")


def _compute(device: str | None, batch_size: int | None, quiet: bool, verbose: bool) -> Compute:
    """This machine's settings with the options over them; the log is set up as well."""
    from clipdistill.application import console  # noqa: PLC0415

    if quiet and verbose:
        raise ParamsError("--quiet and --verbose contradict each other")
    console.set_up(quiet, verbose)
    if device not in (None, *DEVICES):
        raise ParamsError(f"--device: {device!r} is none of {', '.join(DEVICES)}")
    changes: dict[str, Any] = {"device": device, "batch_size": batch_size}
    return Compute.load().model_copy(update={key: value for key, value in changes.items() if value is not None})


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line, nl=False)
