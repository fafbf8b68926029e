"""Score files with a student and write what it says, image by image."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from clipdistill import distributed
from clipdistill.application import console, formats
from clipdistill.application.image_files import named_files
from clipdistill.application.student import BATCH, Scorer, Student, load_any
from clipdistill.datasets.images import UnreadableImageError
from clipdistill.datasets.prompt_names import read_class_file
from clipdistill.errors import ArtifactError, ParamsError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listed:
    """Which classes of an image are listed.

    Attributes:
        top_k: so many; None: those that are present.
        threshold: score from which any class is present; None: each class's own.
    """

    top_k: int | None = None
    threshold: float | None = None


@contextmanager
def result_file(path: Path) -> Iterator[TextIO]:
    """Open a file for results as they come; it has its name once it is whole, and none where the block fails.

    Raises:
        ArtifactError: the disk refuses.
    """
    # Hidden, so that it is none of the files of a folder that is being predicted.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # A file's name is bytes, and leaves as it came.
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            yield stream
        partial.replace(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)


def predict_files(
    model: Path,
    names: list[str],
    out: TextIO,
    form: formats.Format,
    listed: Listed,
    compute: distributed.Compute,
    labels: Path | None = None,
) -> list[UnreadableImageError]:
    """Score the images that a person names, and write the results as they come.

    Args:
        model: model folder.
        names: files, folders and patterns.
        out: where the results go.
        form: how they are written; a table is written at the end.
        listed: which classes.
        compute: device, threads, batch size.
        labels: file of labels to ask a student of open vocabulary for; None: its own.

    Returns:
        What could not be read; all other images are written.

    Raises:
        ArtifactError: the folder holds no whole student.
        DataError: the file of labels is missing, or a line of it is not of its form.
        ParamsError: labels for a classifier, whose classes are fixed; or labels that cannot be told apart.
    """
    begin = time.monotonic()
    torch.set_num_threads(compute.thread_count())
    student = load_any(model, None if labels is None else read_class_file(labels, {}), compute.device)
    if labels is not None and isinstance(student, Student):
        raise ParamsError(
            f"--labels: {model} is a classifier of {len(student.classes)} classes that are fixed; labels can be asked "
            "of a student of open vocabulary, as the pipeline leaves it in cache/*/models/mkt"
        )
    logger.debug("%r of %s loaded in %.2f s", student, model, time.monotonic() - begin)
    if listed == Listed():
        console.tell_unchosen(student.unchosen)
    files, problems = named_files(names)
    # Lines of results would run into a bar on the same terminal.
    with console.progress(len(files), "images", free=form == "table" or not out.isatty()) as advance:
        results = _results(student, files, listed, compute, problems, advance)
        if form == "table":
            results = iter(list(results))
        else:
            out.writelines(formats.WRITERS[form](results))
    if form == "table":
        out.writelines(formats.as_table(results))
    out.flush()
    return problems


def _results(
    student: Scorer,
    files: list[Path],
    listed: Listed,
    compute: distributed.Compute,
    problems: list[UnreadableImageError],
    advance: Callable[[bool], None],
) -> Iterator[formats.Result]:
    """The results of the images that can be read; the others go into `problems`."""
    for path, scores in student.stream(files, compute.batch_size or BATCH, compute.worker_count()):
        if isinstance(scores, UnreadableImageError):
            problems.append(scores)
            advance(False)
        else:
            advance(True)
            yield str(path), student.prediction(scores[None], listed.threshold).ranked(listed.top_k)[0]
