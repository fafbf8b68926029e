"""From an image to what the student takes: one rule for training, prediction and export."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from clipdistill.students.student_yaml import MEAN, STD

Pixels = npt.NDArray[np.uint8]


def resize(image: Image.Image, size: int) -> Pixels:
    """Squash an image to a square: the whole of it stays in sight, its aspect ratio does not.

    Args:
        image: RGB.
        size: S, pixels.

    Returns:
        uint8 [3, S, S]; bilinear, with Pillow's filter against aliasing.
    """
    small = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


def normalise(images: Tensor) -> Tensor:
    """Shift and scale the channels.

    Args:
        images: uint8 [B, 3, S, S], or float in [0, 1].

    Returns:
        float32 [B, 3, S, S], channels last in memory.
    """
    values = images.float().div_(255) if images.dtype == torch.uint8 else images
    mean = torch.tensor(MEAN, device=images.device)[:, None, None]
    std = torch.tensor(STD, device=images.device)[:, None, None]
    return (values - mean).div_(std).contiguous(memory_format=torch.channels_last)
