"""What CLIP makes of captioned images, without an adapter and with one: scores of words, and maps of captions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipdistill import distributed
from clipdistill.clip.segment import Sides, resized_maps
from clipdistill.clip.tagging import Maps, Tagger, Texts
from clipdistill.clip.teacher import Teacher
from clipdistill.datasets.captions import words
from clipdistill.datasets.captions.table import CaptionTable
from clipdistill.evaluation import tag_figures
from clipdistill.evaluation.csv_file import write_csv
from clipdistill.evaluation.segmentation import MaskOverlap, threshold_key
from clipdistill.evaluation.tag_figures import Scores
from clipdistill.methods import ttd
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.training import ttd_pairs, ttd_setup
from clipdistill.training.data import ImageSource, Rows
from clipdistill.training.loop import Machine
from clipdistill.training.predict import autocast
from clipdistill.training.ttd_setup import Way

# Pairs of the training split by which the threshold of a caption's map is chosen.
_CHOOSE_BY = 200


@dataclass(frozen=True, slots=True)
class _Looked:
    """A batch: its rows, texts and maps, and the embeddings of the whole images, [B, D], where they are asked for."""

    rows: Rows
    texts: Texts
    maps: Maps
    whole: Tensor | None


class Tags:
    """CLIP looking at captioned images.

    Args:
        model: CLIP; its weights are moved to the machine's device.
        params: all parameters.
        machine: where.
    """

    def __init__(self, model: Teacher, params: Params, machine: Machine) -> None:
        self._model, self._params, self._machine = model, params.ttd, machine
        self._tagger = Tagger(model.model.to(machine.device)).eval()
        self._size = ttd_setup.image_size(params.ttd, model)
        self._scale = ttd_setup.word_scale(params.ttd, model)

    def score(self, table: CaptionTable, ways: list[Way]) -> dict[Way, Scores]:
        """Score every candidate of every caption, in several ways.

        Args:
            table: N pairs.
            ways: some.

        Returns:
            float32 [W] for each way, the words of a caption after one another.
        """
        parts: dict[Way, list[Scores]] = {way: [] for way in ways}
        for batch in self._look(table, np.arange(len(table)), whole="image" in ways):
            for way in ways:
                scores = ttd_setup.score_words(way, batch.maps, batch.texts.valid, self._scale, batch.whole)
                parts[way].append(scores[batch.texts.valid].numpy())
        return {way: np.concatenate(found) for way, found in parts.items()}

    def overlap(self, table: CaptionTable, rows: Rows) -> MaskOverlap:
        """Compare the captions' maps with the masks of what their true words are, at the images' own sizes."""
        found = MaskOverlap()
        for batch in self._look(table, rows):
            scores = ttd.calibrate(batch.maps.caption, self._params.slope, self._params.shift)
            for row, values in zip(batch.rows.tolist(), scores, strict=True):
                mask = torch.from_numpy(table.open_mask(row))
                found.add(resized_maps(values[None], Sides(*mask.shape))[0], mask.to(torch.uint8))
        return found

    @torch.no_grad()
    def _look(self, table: CaptionTable, rows: Rows, whole: bool = False) -> Iterator[_Looked]:
        machine, own = self._machine, self._model.preprocessing.size
        batches = [rows[part] for part in ttd_pairs.batches_of(0, len(rows), machine.batch_size)]
        dense = ImageSource(table, self._size, "none", machine.workers)
        plain = dense if self._size == own else ImageSource(table, own, "none", machine.workers)
        # The whole image at the encoder's own side, as CLIP was made to see it.
        wholes = plain.batches(batches) if whole else None
        for batch, pixels in zip(batches, dense.batches(batches), strict=True):
            texts = ttd_pairs.texts(self._model, table, batch)
            with autocast(machine.device, machine.dtype):
                maps = self._tagger(self._pixels(pixels), texts.to(machine.device))
                seen = None if wholes is None else self._model.model.encode_image(self._pixels(next(wholes)))
            yield _Looked(batch, texts, maps.cpu(), None if seen is None else seen.float().cpu())

    def _pixels(self, pixels: Tensor) -> Tensor:
        return ttd_pairs.normalised(pixels.to(self._machine.device), self._model)


def evaluate_tags(params: Params) -> tuple[dict[str, Any], list[dict[str, float | str]]]:
    """Compare the ways to choose words, and the captions' maps, without the adapter and with it.

    Returns:
        `tags` by scoring (image, text, pixel, pixel_ttd) and `caption_IoU` (frozen, ttd), percent; and the figures of
        tags at every threshold. Empty is what the captions know no truth of.
    """
    machine = ttd_setup.machine(params.ttd, distributed.Compute.load())
    paths = Paths(params.dataset.name)
    train, val = (CaptionTable.load(paths.captions(split)) for split in ("train", "val"))
    pixel = ttd_setup.pixel_rule(params.ttd)
    frozen = Tags(ttd_setup.plain_teacher(params), params, machine)
    scores, overlaps = {}, {}
    if val.truth is not None:
        found = frozen.score(val, ["image", "text", pixel])
        scores = {"image": found["image"], "text": found["text"], "pixel": found[pixel]}
    overlaps["frozen"] = _caption_overlap(frozen, train, val)
    adapted = Tags(ttd_setup.adapted_teacher(params), params, machine)
    if val.truth is not None:
        scores["pixel_ttd"] = adapted.score(val, [pixel])[pixel]
    overlaps["ttd"] = _caption_overlap(adapted, train, val)
    figures: dict[str, Any] = {"threshold": params.ttd.threshold, "pairs": len(val)}
    rows: list[dict[str, float | str]] = []
    if val.truth is not None:
        truth = tag_figures.truth_of(val.tags, val.truth)
        dropped = _dropped(val)
        chosen = {name: values >= params.ttd.threshold for name, values in scores.items()}
        figures |= {name: tag_figures.tag_figures(flags, truth, dropped) for name, flags in chosen.items()}
        rows = tag_figures.sweep(scores, truth, dropped)
    return {"tags": figures, "caption_IoU": overlaps}, rows


def write_sweep(path: Path, rows: list[dict[str, float | str]]) -> None:
    """Write the figures of tags at every threshold as CSV."""
    head = ["scoring", "threshold", "P", "R", "F1", "Acc"]
    write_csv(path, head, [[str(row[name]) for name in head] for row in rows])


def _dropped(table: CaptionTable) -> int:
    """Words of the captions that are no candidates: function words."""
    every = sum(len(words.candidates(caption, drop_function_words=False)) for caption in table.captions)
    return every - sum(map(len, table.tags))


def _caption_overlap(tags: Tags, train: CaptionTable, val: CaptionTable) -> dict[str, Any]:
    """Overlap of the captions' maps with their masks, at the threshold that is best on some training pairs."""
    chooses, counts = (np.array([row for row in range(len(t)) if t.masks[row]], dtype=np.int64) for t in (train, val))
    if not len(chooses) or not len(counts):
        return {}
    threshold = tags.overlap(train, chooses[:_CHOOSE_BY]).best_threshold()
    if math.isnan(threshold):
        return {}
    found = tags.overlap(val, counts).figures()
    key = threshold_key(threshold)
    return {"IoU": found["summed"][key], "IoU_per_image": found["per_image"][key], "threshold": threshold}
