"""Score maps of an image by the names of classes: windows at several sizes through CLIP's image tower, put together.

Each window gives the cells of the tower's map (`tokens.dense_embeddings`), and their cosines with the texts are a map.
The maps of an image's windows, sizes and mirrored copies are averaged as cosines, turned into probabilities, and
refined by the image's own pixels (`ttd.pamr`).

C texts, D the width of the embedding, S the side of a window, pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipdistill import distributed
from clipdistill.clip.encoder import default_batch
from clipdistill.clip.preprocessing import normalise
from clipdistill.clip.prompts import embed_prompts
from clipdistill.clip.teacher import Teacher
from clipdistill.errors import ParamsError, TeacherError
from clipdistill.methods import ttd
from clipdistill.params import TtdParams
from clipdistill.students import tokens

Pixels = npt.NDArray[np.uint8]

# An image that is longer than this many times its shorter side is made smaller: memory goes with its area.
_LONGEST = 8

# Texts whose maps are put together at a time.
_CHUNK = 32


class Sides(NamedTuple):
    """Height and width, pixels."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Look:
    """How an image is looked at.

    Attributes:
        image_size: shorter side at scale 1, pixels.
        window: S, side of the windows, pixels.
        stride: from a window to the next, pixels.
        scales: sizes over `image_size`.
        flip: whether each is looked at mirrored as well.
        passes: of the refinement by pixels; 0: none.
        slope: of `ttd.calibrate`.
        shift: of `ttd.calibrate`.
    """

    image_size: int
    window: int
    stride: int
    scales: tuple[float, ...]
    flip: bool
    passes: int
    slope: float
    shift: float

    @classmethod
    def of(cls, params: TtdParams, clip: Teacher) -> Self:
        """What the parameters say.

        Args:
            params: section `ttd`.
            clip: whose image tower looks.

        Raises:
            ParamsError: windows of a side that the tower does not take, or that leave pixels out.
        """
        wanted, own = params.segment, clip.preprocessing.size
        window = own if wanted.window == "clip" else wanted.window
        name = str(clip.identity.get("model", "the tower"))
        tokens.require_side(clip.model.visual, name, own, window, "ttd.segment.window", "set it to clip")
        if wanted.stride > window:
            raise ParamsError(
                f"ttd.segment.stride: {wanted.stride} pixels from a window to the next leave pixels between windows of "
                f"{window}; set it to {window} or less"
            )
        if wanted.image_size < window:
            raise ParamsError(
                f"ttd.segment.image_size: {wanted.image_size} pixels are less than a window of {window}, which would "
                f"mostly be filled; set it to {2 * window}, say, and ttd.segment.stride to {window // 2}"
            )
        scales = tuple(wanted.scales)
        refined = wanted.pamr, params.slope, params.shift
        return cls(wanted.image_size, window, wanted.stride, scales, wanted.flip, *refined)


class _View(NamedTuple):
    """An image at one size, mirrored or not.

    Attributes:
        pixels: uint8 [h, w, 3], each side a window's or longer.
        sides: of the part that is the image; what is right of it or below only fills the window.
        places: of the windows.
        mirrored: whether left is right.
    """

    pixels: Pixels
    sides: Sides
    places: list[ttd.Place]
    mirrored: bool


def class_text(clip: Teacher, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Embed class names through prompt templates, as `embed_prompts` does it; a lone class is no error here.

    Args:
        clip: CLIP, its text tower on the CPU.
        names: C names as prompts say them.
        templates: each with one {}.

    Returns:
        float32 [C, D], rows of unit norm.

    Raises:
        ParamsError: as `embed_prompts`.
    """
    # A lone class has a background to be told from, and its embedding does not depend on other names.
    others = [f"no {names[0]}"] if len(names) == 1 else []
    return embed_prompts(clip, [*names, *others], templates)[: len(names)]


class Segmenter:
    """CLIP's image tower on a device, and how it looks at images.

    Args:
        clip: CLIP; its image tower is moved and cast in place.
        look: sizes, windows and refinement.
        precision: auto, fp32, bf16 or fp16, of the tower alone: maps are float32.
        device: where it runs.
        batch: windows a forward pass; None: by the device.
    """

    def __init__(
        self,
        clip: Teacher,
        look: Look,
        precision: distributed.Precision,
        device: torch.device,
        batch: int | None = None,
    ) -> None:
        self._dtype = distributed.resolve_precision(precision, device)
        self._tower = clip.model.visual.to(device=device, dtype=self._dtype, memory_format=torch.channels_last)
        self._preprocessing, self._look, self._device = clip.preprocessing, look, device
        self._batch = batch or default_batch(look.window, device)
        rules = {"bilinear": Image.Resampling.BILINEAR}
        self._resampling = rules.get(clip.preprocessing.interpolation, Image.Resampling.BICUBIC)

    @torch.inference_mode()
    def maps(self, image: Image.Image, text: Tensor) -> Tensor:
        """Score the pixels of an image for texts.

        Args:
            image: RGB, upright.
            text: float [C, D], rows of unit norm.

        Returns:
            float32 [C, h, w] on the device, probabilities; h and w are the image's sides scaled so that the shorter one
            is `image_size`, or less where the longer one would be more than 8 times that.

        Raises:
            TeacherError: the tower gives NaN or infinity, or the GPU has too little memory.
        """
        base = scaled_sides(image, self._look.image_size)
        views = list(self._views(image, base))
        cells = self._cells(window for view in views for window in _windows(view))
        parts = torch.split(cells, [len(view.places) for view in views])
        text = text.to(self._device, torch.float32)
        found = torch.empty(len(text), *base, device=self._device)
        for start in range(0, len(text), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            total = torch.zeros_like(found[chunk])
            for view, part in zip(views, parts, strict=True):
                total += self._map(view, part, text[chunk], base)
            found[chunk] = ttd.calibrate(total / len(views), self._look.slope, self._look.shift)
        if not self._look.passes:
            return found
        pixels = torch.from_numpy(self._resized(image, base)).to(self._device).permute(2, 0, 1)[None].float()
        return ttd.pamr(pixels, found[None], iterations=self._look.passes, chunk=_CHUNK)[0]

    @torch.inference_mode()
    def best(self, image: Image.Image, text: Tensor) -> tuple[Tensor, Tensor]:
        """Find the class of each pixel of an image, in the image's own size.

        Args:
            image: RGB, upright, H x W pixels.
            text: as for `maps`.

        Returns:
            float32 [H, W], the highest score, and int64 [H, W], which text that is; on the device.

        Raises:
            TeacherError: as `maps`.
        """
        maps = self.maps(image, text)
        score = torch.full((image.height, image.width), -torch.inf, device=self._device)
        index = torch.zeros(image.height, image.width, dtype=torch.int64, device=self._device)
        for start in range(0, len(maps), _CHUNK):
            large = resized_maps(maps[start : start + _CHUNK], Sides(image.height, image.width))
            highest, which = large.max(dim=0)
            better = highest > score
            score, index = torch.where(better, highest, score), torch.where(better, which + start, index)
        return score, index

    def _views(self, image: Image.Image, base: Sides) -> Iterator[_View]:
        look = self._look
        for scale in look.scales:
            sides = Sides(*(max(1, round(scale * side)) for side in base))
            pixels = self._resized(image, sides)
            for mirrored in (False, True) if look.flip else (False,):
                filled = _filled(pixels[:, ::-1] if mirrored else pixels, look.window)
                places = ttd.sliding_windows(len(filled), filled.shape[1], look.window, look.stride)
                yield _View(filled, sides, places, mirrored)

    def _resized(self, image: Image.Image, sides: Sides) -> Pixels:
        return np.array(image.resize((sides.width, sides.height), self._resampling))

    def _cells(self, windows: Iterator[Pixels]) -> Tensor:
        """Embed windows uint8 [S, S, 3]: float32 [windows, M, D], cells of unit norm, on the device."""
        found = []
        while batch := list(itertools.islice(windows, self._batch)):
            # The permuted view of channels-last pixels is a channels-last tensor: nothing is copied.
            pixels = torch.from_numpy(np.stack(batch)).to(self._device).permute(0, 3, 1, 2)
            try:
                cells = tokens.dense_embeddings(self._tower, normalise(pixels, self._preprocessing).to(self._dtype))
            except torch.OutOfMemoryError:
                raise TeacherError(
                    f"the GPU has too little memory for {len(batch)} windows of {self._look.window} pixels: set "
                    f"batch_size in compute.yaml, or CLIPDISTILL_BATCH_SIZE={max(1, len(batch) // 2)}"
                ) from None
            found.append(F.normalize(cells.float(), dim=-1))
        whole = torch.cat(found)
        if not bool(torch.isfinite(whole).all()):
            cure = "use bf16, which has the range of fp32" if self._dtype is torch.float16 else "check the weights"
            name = str(self._dtype).removeprefix("torch.")
            raise TeacherError(f"clip.precision: the image encoder gives NaN or infinity in {name}: {cure}")
        return whole

    def _map(self, view: _View, cells: Tensor, text: Tensor, base: Sides) -> Tensor:
        """Cosines [c, h, w] of a view's pixels and texts, at the size of scale 1, from its windows' cells [n, M, D]."""
        maps = tokens.as_map(cells @ text.T)
        sides = Sides(self._look.window, self._look.window)
        merged = ttd.merge_windows((resized_maps(one, sides) for one in maps), view.places, *view.pixels.shape[:2])
        merged = merged[:, : view.sides.height, : view.sides.width]
        return resized_maps(merged.flip(-1) if view.mirrored else merged, base)


def scaled_sides(image: Image.Image, shorter: int) -> Sides:
    """Height and width of an image at scale 1: its shorter side is `shorter`, and its longer one no more than 8 x."""
    short, long = sorted(image.size)
    factor = min(shorter / short, _LONGEST * shorter / long)
    return Sides(max(1, round(factor * image.height)), max(1, round(factor * image.width)))


def _filled(pixels: Pixels, window: int) -> Pixels:
    """Repeat the last row and column until a window fits."""
    missing = [(0, max(0, window - side)) for side in pixels.shape[:2]]
    return np.pad(pixels, [*missing, (0, 0)], mode="edge")


def _windows(view: _View) -> Iterator[Pixels]:
    return (view.pixels[rows, columns] for rows, columns in view.places)


def resized_maps(maps: Tensor, sides: Sides) -> Tensor:
    """Maps [c, h, w] at another size, between whose cells values change evenly."""
    return F.interpolate(maps[None], size=tuple(sides), mode="bilinear", align_corners=False)[0]
