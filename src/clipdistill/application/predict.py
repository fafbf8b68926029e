"""Score files with a student and write what it says, image by image."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import torch

from clipdistill import distributed
from clipdistill.application import console, formats
from clipdistill.application.image_files import named_files
from clipdistill.application.student import BATCH, Student
from clipdistill.datasets.images import UnreadableImageError

logger = logging.getLogger(__name__)


def predict_files(
    model: Path, names: list[str], out: TextIO, form: formats.Format, top_k: int | None, compute: distributed.Compute
) -> list[UnreadableImageError]:
    """Score the images that a person names, and write the results as they come.

    Args:
        model: model folder.
        names: files, folders and patterns.
        out: where the results go.
        form: how they are written; a table is written at the end.
        top_k: so many classes an image; None: those from their threshold on.
        compute: device, threads, batch size.

    Returns:
        What could not be read; all other images are written.

    Raises:
        ArtifactError: the folder holds no whole student.
    """
    begin = time.monotonic()
    torch.set_num_threads(compute.thread_count())
    student = Student.load(model, compute.device)
    logger.debug("%s of %s loaded in %.2f s", student.card.backbone, model, time.monotonic() - begin)
    files, problems = named_files(names)
    # Lines of results would run into a bar on the same terminal.
    with console.progress(len(files), "images", free=form == "table" or not out.isatty()) as advance:
        results = _results(student, files, top_k, compute, problems, advance)
        if form == "table":
            results = iter(list(results))
        else:
            out.writelines(formats.WRITERS[form](results))
    if form == "table":
        out.writelines(formats.as_table(results))
    out.flush()
    return problems


def _results(
    student: Student,
    files: list[Path],
    top_k: int | None,
    compute: distributed.Compute,
    problems: list[UnreadableImageError],
    advance: Callable[[], None],
) -> Iterator[formats.Result]:
    """The results of the images that can be read; the others go into `problems`."""
    for path, scores in student.stream(files, compute.batch_size or BATCH, compute.worker_count()):
        advance()
        if isinstance(scores, UnreadableImageError):
            problems.append(scores)
        else:
            yield str(path), student.prediction(scores[None]).ranked(top_k)[0]
