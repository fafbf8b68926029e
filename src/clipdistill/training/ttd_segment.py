"""Segmentation by the names of classes, over a data set with masks: what CLIP's maps are worth, adapter or not.

The score of the background is chosen on training images, never on those that are evaluated.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipdistill import distributed, stage, store
from clipdistill.clip.segment import Look, Segmenter, class_text
from clipdistill.clip.teacher import Teacher
from clipdistill.datasets.ahead import ahead
from clipdistill.datasets.masks.masked import Mask, MaskedImages
from clipdistill.datasets.masks.readers import read_masked
from clipdistill.errors import DataError
from clipdistill.evaluation import mask_picture
from clipdistill.evaluation.segmentation import (
    BackgroundChoice,
    BackgroundSweep,
    Confusion,
    choose_background,
    segmentation_figures,
    with_background,
)
from clipdistill.params import Params

logger = logging.getLogger(__name__)

PICTURES = 6
"""Images of the evaluation split of which a picture is kept, the first ones."""

# Which training images choose the background: no parameter, since nothing else about it is random.
_SEED = 0

_SECONDS_A_LINE = 10


def segment(params: Params, clip: Teacher, compute: distributed.Compute, pictures: Path) -> dict[str, Any]:
    """Segment the images of `ttd.segment.val` by the names of their classes, and compare with their masks.

    Called by several processes, each segments its share of the images, and all get the figures of the whole; then they
    must be connected (`distributed.process_group`).

    Args:
        params: all parameters.
        clip: CLIP, whatever adapter its weights hold; its image tower is moved and cast in place.
        compute: device, threads, batch size.
        pictures: folder in which a picture of each of the first images is put: 0.png ...

    Returns:
        What `segmentation_figures` gives; and where the background was chosen, `choice`: the number of training images,
        and mIoU in percent by the background's score.

    Raises:
        DataError: a file of the data set is missing or not of its form, or the splits have different classes.
        ParamsError: windows that the tower does not take, or a class whose prompt it cannot read.
        TeacherError: the tower gives no finite maps, or the GPU has too little memory.
    """
    torch.set_num_threads(compute.thread_count())
    data = read_masked(params.ttd.segment, "val", params.dataset.max_pixels)
    text = class_text(clip, data.prompts, params.prompts.templates)
    look = Look.of(params.ttd, clip)
    segmenter = Segmenter(clip, look, params.clip.precision, compute.torch_device(), compute.batch_size)
    run = _Run(segmenter, text, compute)
    background, choice = _background(params, data, run)
    confusion = Confusion(len(data.labels))
    for row, image, truth, best, index in run.over(data, range(len(data)), "segment"):
        predicted = with_background(best, index, background)
        confusion.add(predicted, torch.from_numpy(truth))
        if row < PICTURES:
            drawn = mask_picture.draw(image, truth, predicted.to(torch.uint8).numpy())
            store.write_atomically(pictures / f"{row}.png", drawn)
    counts = distributed.sum_over_processes(confusion.counts)
    return segmentation_figures(counts, data.labels, len(data), background) | choice


def check_masked(params: Params, compute: distributed.Compute) -> None:
    """Open every image and mask that `segment` is going to, each process its share, before a GPU has worked for hours.

    Raises:
        DataError: one is missing or broken, a mask does not fit its image or has a value that stands for nothing,
            or the splits have different classes.
    """
    wanted = params.ttd.segment
    val = read_masked(wanted, "val", params.dataset.max_pixels)
    parts: list[tuple[MaskedImages, Sequence[int]]] = [(val, range(len(val)))]
    if val.background and wanted.background == "auto":
        parts.append(_choosing_images(params, val))
    for data, rows in parts:
        own = rows[slice(*distributed.slice_of(len(rows)))]
        logger.info("checking %d images and masks", len(own))
        for _ in ahead(([row] for row in own), data.open, compute.worker_count()):
            pass
    distributed.barrier()


def _choose_on(data: MaskedImages, rows: Sequence[int], run: _Run) -> BackgroundChoice:
    """Choose the background's score on rows of a data set, all scores in one pass.

    Raises:
        DataError: every pixel of their masks is ignored.
    """
    sweep = BackgroundSweep(len(data.labels))
    for _, _, truth, best, index in run.over(data, rows, "background"):
        sweep.add(best, index, torch.from_numpy(truth))
    choice = choose_background(distributed.sum_over_processes(sweep.counts))
    if math.isnan(choice.background):
        raise DataError(
            "ttd.segment.background: every pixel of the training masks is ignored, so that none can be chosen; set it "
            "to a number, or let ttd.segment.train name masks with classes"
        )
    return choice


def _background(params: Params, data: MaskedImages, run: _Run) -> tuple[float | None, dict[str, Any]]:
    """The background's score, None where there is no background; and how it was chosen, where it was."""
    wanted = params.ttd.segment
    if not data.background:
        return None, {}
    if wanted.background != "auto":
        return wanted.background, {}
    train, rows = _choosing_images(params, data)
    choice = _choose_on(train, rows, run)
    return choice.background, {"choice": {"images": len(rows), "mIoU": choice.curve}}


def _choosing_images(params: Params, data: MaskedImages) -> tuple[MaskedImages, list[int]]:
    """The training split, and the rows of it that choose the background's score."""
    wanted = params.ttd.segment
    train = read_masked(wanted, "train", params.dataset.max_pixels)
    if train.labels != data.labels:
        raise DataError(f"{wanted.root}: {wanted.train} and {wanted.val} have different classes; take one release")
    return train, training_rows(len(train), wanted.train_images)


def training_rows(images: int, most: int) -> list[int]:
    """Rows that choose the background: the first ones of one fixed order, ascending; of fewer images all."""
    order: list[int] = np.random.default_rng(_SEED).permutation(images).tolist()
    return sorted(order[:most])


class _Run:
    """Images of a data set through the segmenter, decoded ahead.

    Args:
        segmenter: finds the class of each pixel.
        text: float32 [C, D].
        compute: threads that decode.
    """

    def __init__(self, segmenter: Segmenter, text: Tensor, compute: distributed.Compute) -> None:
        self._segmenter, self._text, self._workers = segmenter, text, compute.worker_count()

    def over(
        self, data: MaskedImages, rows: Sequence[int], what: str
    ) -> Iterator[tuple[int, Image.Image, Mask, Tensor, Tensor]]:
        """This process's share of rows: row, image, mask uint8 [H, W], and what `Segmenter.best` gives, on the CPU."""
        own = rows[slice(*distributed.slice_of(len(rows)))]
        stage.count("images", len(rows))
        progress = _Progress(what, len(own))
        opened = ahead(([row] for row in own), data.open, self._workers)
        for row, (image, mask) in zip(own, itertools.chain.from_iterable(opened), strict=True):
            best, index = self._segmenter.best(image, self._text)
            yield row, image, mask, best.cpu(), index.cpu()
            progress.advance()


class _Progress:
    """Progress as log lines, one in ten seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._begin = self._last = time.monotonic()

    def advance(self) -> None:
        """Count an image."""
        self._done += 1
        now = time.monotonic()
        if now - self._last > _SECONDS_A_LINE or self._done == self._total:
            self._last = now
            rate = self._done / max(1e-9, now - self._begin)
            line = "%s: %d of %d images, %.1f images/s, %.0f s left"
            logger.info(line, self._what, self._done, self._total, rate, (self._total - self._done) / rate)
