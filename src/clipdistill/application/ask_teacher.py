"""What CLIP itself says of one image: looking at it whole, at its snippets, and at both, as in the first labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from clipdistill import distributed, store
from clipdistill.application.image_files import open_image
from clipdistill.clip import teacher, views
from clipdistill.clip.encoder import ImageEncoder
from clipdistill.clip.preprocessing import Resize, ViewTransform
from clipdistill.clip.prompts import embed_prompts
from clipdistill.clip.views import ViewTable
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ParamsError, TeacherError
from clipdistill.methods import cdul
from clipdistill.params import ClipParams, Params
from clipdistill.training.pseudo_label import resolve_temperature

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Opinion:
    """CLIP's scores of a class, each in [0, 1].

    Attributes:
        name: of the class.
        whole: of the whole image (CDUL Eq. 2).
        snippets: aggregated over the snippets (Eq. 6).
        both: their fusion (Eq. 7), the first pseudo label before any standardisation.
    """

    name: str
    whole: float
    snippets: float
    both: float


def chosen_clip(params: ClipParams, model: str | None, pretrained: str | None, weights: Path | None) -> ClipParams:
    """The CLIP of the parameters, or the one that the options name.

    Raises:
        ParamsError: options that do not go together, or a file that cannot be read.
        TeacherError: none is named, and the pipeline's own was not trained here.
    """
    if pretrained and weights:
        raise ParamsError("--pretrained names published weights and --weights a file; give one of them")
    if not (model or pretrained or weights):
        own = teacher.TEACHERS / f"{params.source}.yaml"
        if params.source == "scenes" and not own.is_file():
            raise TeacherError(
                f"{own} is missing, the CLIP that the pipeline trains itself: run `dvc repro "
                "stages/scenes/dvc.yaml:pretrain_clip` in a checkout, or name another CLIP with --model, and "
                "--pretrained or --weights"
            )
        return params
    if not model or not (pretrained or weights):
        raise ParamsError("another CLIP needs --model, and --pretrained or --weights; `clipdistill models` lists them")
    if pretrained:
        return ClipParams(source="open_clip", model=model, pretrained=pretrained, precision=params.precision)
    try:
        sha256 = store.file_sha256(Path(str(weights)))
    except OSError as error:
        raise ParamsError(f"--weights: {weights} cannot be read ({error.strerror})") from None
    return ClipParams(source="file", model=model, weights=str(weights), sha256=sha256, precision=params.precision)


def ask_teacher(image: Path, names: list[str], params: Params, compute: distributed.Compute) -> list[Opinion]:
    """Let CLIP score the classes of one image, with the views, prompts and temperature of the parameters.

    Args:
        image: file.
        names: C different classes, as the prompts say them.
        params: all parameters; `clip` says which CLIP.
        compute: device, threads.

    Returns:
        One opinion a class, the highest `both` first.

    Raises:
        UnreadableImageError: the file is missing or no whole image.
        TeacherError: the CLIP cannot be loaded.
        ParamsError: two classes with one name, or one that is too long for the text encoder.
    """
    photo = open_image(image)
    device = compute.torch_device()
    torch.set_num_threads(compute.thread_count())
    clip = teacher.load(params.clip)
    text = embed_prompts(clip, names, params.prompts.templates)
    encoder = ImageEncoder(clip, params.clip.precision, device)
    temperature = resolve_temperature(params.pseudo_label, {"logit_scale": clip.logit_scale})

    def scores(boxes: ViewTable, resize: Resize) -> torch.Tensor:
        pixels = torch.from_numpy(ViewTransform(clip.preprocessing, resize)(photo, boxes.box))
        found = np.concatenate([encoder(part) for part in torch.split(pixels, _BATCH)])
        return cdul.scores(F.normalize(torch.from_numpy(found).float(), dim=-1) @ text.T, temperature)

    table = _table_of_one(photo.width, photo.height)
    cells = views.snippets(table, params.views.snippets)
    whole = scores(views.whole(table), params.views.whole.resize)
    highest, lowest = cdul.extremes(scores(cells, params.views.snippets.resize), torch.from_numpy(cells.offset))
    aggregate = cdul.aggregate(highest, lowest, params.pseudo_label.cdul.threshold)
    both = cdul.final_similarity(whole, aggregate, params.pseudo_label.cdul.weight)
    columns = (whole[0].tolist(), aggregate[0].tolist(), both[0].tolist())
    opinions = [Opinion(*row) for row in zip(names, *columns, strict=True)]
    return sorted(opinions, key=lambda opinion: -opinion.both)


def _table_of_one(width: int, height: int) -> ImageTable:
    """An image table for what views are made from: the sides of one image."""
    across, down = (np.array([side], dtype=np.int32) for side in (width, height))
    return ImageTable(Path(), ["image"], [""], across, down, np.zeros(1, np.int64), [""], 0)
