"""Augmentation of whole batches: random resized crop, horizontal flip and colour jitter.

An image's random numbers depend on the seed, the epoch and its row alone: not on its batch, nor on the process or
the moment, so that a resumed run and any number of processes see the same images. One affine sampling and one matrix
product a batch take less time than torchvision's transforms take image by image, and share it between threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipdistill.students import preprocessing

_STREAM = 2
_DRAWS = 8

# Crops keep an aspect ratio between 3:4 and 4:3, relative to the squashed image.
_LOG_RATIO = math.log(4 / 3)

# Luma of ITU-R BT.601, as Pillow and torchvision take it.
_LUMA = (0.299, 0.587, 0.114)


def draw(images: int, seed: int, epoch: int, view: int = 0) -> Tensor:
    """Draw the random numbers of an epoch.

    Args:
        images: N.
        seed: of the run.
        epoch: from 1.
        view: 0 for the first view of the images, 1 for the second.

    Returns:
        float32 [N, 8], uniform in [0, 1); row i is image i's, whatever N.
    """
    generator = np.random.default_rng([seed, epoch, _STREAM, view])
    return torch.from_numpy(generator.random((images, _DRAWS), dtype=np.float32))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to an image; `images` to `images` is the whole of it.

    Attributes:
        flip: probability of a horizontal flip.
        min_scale: a crop keeps a share of the area uniform in [min_scale, 1], and is resized to the full side.
        jitter: brightness, contrast and saturation are each multiplied by a factor uniform in [1 - jitter,
            1 + jitter], in this order.
    """

    flip: float
    min_scale: float
    jitter: float

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8 [B, 3, S, S].
            draws: float32 [B, 8], the rows of `draw` that belong to the images.

        Returns:
            float32 [B, 3, S, S], in [0, 1].
        """
        # A crop of the whole image samples every pixel at its centre: what is left is the flip.
        place = self._flip if self.min_scale == 1 else self._crop_and_flip
        placed = place(images.float().div_(255), draws[:, :5])
        return self._jitter(placed, draws[:, 5:]) if self.jitter else placed

    def _flip(self, images: Tensor, draws: Tensor) -> Tensor:
        if not self.flip:
            return images
        return torch.where((draws[:, 4] < self.flip)[:, None, None, None], images.flip(-1), images)

    def _crop_and_flip(self, images: Tensor, draws: Tensor) -> Tensor:
        scale = self.min_scale + (1 - self.min_scale) * draws[:, 0]
        # Bounded so that the crop lies within the image: neither rejection nor clipping bends the distribution.
        ratio = torch.exp(torch.clamp(-scale.log(), max=_LOG_RATIO) * (2 * draws[:, 1] - 1))
        width, height = (scale * ratio).sqrt(), (scale / ratio).sqrt()
        theta = images.new_zeros(len(images), 2, 3)
        theta[:, 0, 0] = torch.where(draws[:, 4] < self.flip, -width, width)
        theta[:, 1, 1] = height
        theta[:, 0, 2] = (1 - width) * (2 * draws[:, 2] - 1)
        theta[:, 1, 2] = (1 - height) * (2 * draws[:, 3] - 1)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _jitter(self, images: Tensor, draws: Tensor) -> Tensor:
        """The three changes of colour are linear, and so one 3 x 3 matrix and one offset an image."""
        brightness, contrast, saturation = (1 + self.jitter * (2 * draws - 1)).unbind(dim=1)
        luma = torch.tensor(_LUMA, device=images.device)
        mean_luma = brightness * (images.mean(dim=(2, 3)) @ luma)
        own = saturation[:, None, None] * torch.eye(3, device=images.device)
        matrix = (contrast * brightness)[:, None, None] * (own + (1 - saturation)[:, None, None] * luma)
        offset = ((1 - contrast) * mean_luma)[:, None, None]
        return torch.baddbmm(offset, matrix, images.flatten(2)).view_as(images).clamp_(0, 1)


def augmented(pixels: Tensor, views: Sequence[Augmentation], draws: Sequence[Tensor]) -> Tensor:
    """Make the network's batch: every image once in each view, normalised.

    Args:
        pixels: uint8 [B, 3, S, S].
        views: what is done to the images in each of K views.
        draws: float32 [B, 8] for each view, the rows of `draw` that belong to the images.

    Returns:
        float32 [K * B, 3, S, S], view by view, channels last in memory.
    """
    images = [preprocessing.normalise(view(pixels, own)) for view, own in zip(views, draws, strict=True)]
    return images[0] if len(images) == 1 else torch.cat(images)
