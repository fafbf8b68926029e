"""Scores of labels that training saw and of labels that it did not: of MKT's student, and of frozen CLIP beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from clipdistill import distributed, store
from clipdistill.clip import open_folder, teacher
from clipdistill.clip.prompts import embed_prompts
from clipdistill.datasets.table import ClassName, ImageTable, read_classes
from clipdistill.errors import ArtifactError
from clipdistill.methods import mkt
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.students import preprocessing, tokens
from clipdistill.students.open_vocabulary import Eyes, Scoring
from clipdistill.training.data import ImageSource
from clipdistill.training.mkt_student import embed_labels, eyes_of
from clipdistill.training.predict import autocast

Scores = npt.NDArray[np.float32]

ROWS = ("student", "untuned", "teacher", "teacher_global")
"""MKT's student; the same before its prompts were tuned; frozen CLIP by both streams; and by the whole image alone."""

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """A list of labels that images are scored for.

    Attributes:
        eyes: image tower.
        text: float32 [L, D].
        scoring: how.
    """

    eyes: Eyes
    text: Tensor
    scoring: Scoring


def predict_open(params: Params, compute: distributed.Compute) -> dict[str, Scores]:
    """Score the evaluation images of the pipeline for its open vocabulary.

    Returns:
        For each row of `ROWS`, <row>: float32 [M, L], scores of all labels among one another; <row>_zsl: float32
        [M, U], of the unseen ones alone. With `mkt.norm` cosine the latter are columns of the former.

    Raises:
        ArtifactError: an artifact is missing, altered, or of other labels or images.
    """
    paths = Paths(params.dataset.name)
    table, labels = ImageTable.load(paths.table("val")), read_classes(paths.open_classes)
    prompts = [item.prompt for item in labels]
    tuned, first = open_folder.load(paths.mkt_prompted), open_folder.load(paths.student("mkt"))
    clip = teacher.load(params.clip)
    if first.card.provenance["student"]["weights"] != clip.identity["weights"]:
        raise ArtifactError(f"{paths.student('mkt')} is of another teacher than clip.*: run `dvc repro`")
    torch.set_num_threads(compute.thread_count())
    own, size = tuned.eyes(), tuned.card.image_size
    # CLIP at the student's size where it takes that, else at its own: of a network of timm it need not.
    any_size = tuned.card.backbone == "clip" or tokens.takes_any_side(clip.model.visual)
    teacher_size = size if any_size else clip.preprocessing.size
    frozen = embed_labels(clip.model, clip.tokenizer, params.mkt.prompt, prompts)
    asked = {
        "student": (size, Asked(own, tuned.embed(prompts), tuned.scoring)),
        "untuned": (size, Asked(own, first.embed(prompts), tuned.scoring)),
        "teacher": (teacher_size, Asked(eyes_of(clip, teacher_size).eval(), frozen, first.scoring)),
    }
    unseen = torch.tensor([not item.seen for item in labels])
    found: dict[str, Scores] = {}
    # Every image is decoded once for all that look at it in one size.
    for side in dict.fromkeys((size, teacher_size)):
        lists: dict[str, tuple[Asked, Tensor]] = {}
        for row, (own_side, one) in asked.items():
            if own_side == side:
                lists |= {row: (one, torch.arange(len(labels))), f"{row}_zsl": (one, unseen.nonzero()[:, 0])}
        found |= score_images(lists, table, side, params, compute)
    return found | _global(clip, labels, table, paths, params)


@torch.no_grad()
def score_images(
    lists: dict[str, tuple[Asked, Tensor]], table: ImageTable, size: int, params: Params, compute: distributed.Compute
) -> dict[str, Scores]:
    """Score every image of a table for several lists of labels, each image decoded and each tower run once.

    Args:
        lists: by name: what is asked, and which rows of its text.
        table: M images.
        size: S, pixels.
        params: all parameters.
        compute: device, threads, batch size.

    Returns:
        float32 [M, L] by name.
    """
    device = compute.torch_device()
    torch.set_num_threads(compute.thread_count())
    dtype = distributed.resolve_precision(params.mkt.recipe.precision, device)
    images = ImageSource(table, size, "none", compute.worker_count(), device.type == "cuda")
    towers = {id(asked.eyes): asked.eyes.to(device) for asked, _ in lists.values()}
    texts = {name: asked.text[rows].to(device) for name, (asked, rows) in lists.items()}
    batch = compute.batch_size or _BATCH
    parts: dict[str, list[Tensor]] = {name: [] for name in lists}
    for pixels in images.batches(np.split(np.arange(len(table)), range(batch, len(table), batch))):
        values = preprocessing.normalise(pixels.to(device, non_blocking=True))
        with autocast(device, dtype):
            looked = {key: tower(values) for key, tower in towers.items()}
        for name, (asked, _) in lists.items():
            if len(texts[name]):
                cls, patches = (part.float() for part in looked[id(asked.eyes)])
                how = asked.scoring
                parts[name].append(mkt.two_stream(cls, patches, texts[name], how.k, how.norm, how.local).cpu())
    return {name: torch.cat(found).numpy() for name, found in parts.items() if found}


def _global(
    clip: teacher.Teacher, labels: list[ClassName], table: ImageTable, paths: Paths, params: Params
) -> dict[str, Scores]:
    """Frozen CLIP as it is mostly used: cosines of the whole image, from its cached embedding."""
    cached = store.read_group(paths.embeddings("val", "global"), {"table": table.fingerprint})
    text = embed_prompts(clip, [item.prompt for item in labels], [params.mkt.prompt])
    scores = (F.normalize(torch.from_numpy(cached.read("embedding")).float(), dim=-1) @ text.T).numpy()
    unseen = ~np.array([item.seen for item in labels])
    return {"teacher_global": scores} | ({"teacher_global_zsl": scores[:, unseen]} if unseen.any() else {})
