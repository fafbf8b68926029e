"""From a box of an image to the pixels that the image encoder takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from open_clip.transform import image_transform
from PIL import Image

from clipdistill.clip.teacher import Preprocessing

Resize = Literal["open_clip", "squash"]
Pixels = npt.NDArray[np.uint8]


class ViewTransform:
    """Crop a view and resize it, by Pillow, to the encoder's input size.

    `open_clip` is the model's own evaluation transform, equal pixel by pixel, but for strips of more than S to 1 (S:
    side of the encoder's input, pixels): of them it sees the middle alone. `squash` brings the whole view to the
    square, so that no side of it is lost.

    Args:
        preprocessing: of the teacher.
        resize: how a view becomes a square.
    """

    def __init__(self, preprocessing: Preprocessing, resize: Resize) -> None:
        self.size = preprocessing.size
        mode = preprocessing.resize_mode if resize == "open_clip" else "squash"
        composed = image_transform(
            preprocessing.size, is_train=False, resize_mode=mode, interpolation=preprocessing.interpolation
        )
        # The geometry alone; values stay bytes until they are on the device.
        self._geometry = [step for step in composed.transforms if _is_geometry(step)]
        self._keeps_aspect = mode != "squash"

    def __call__(self, image: Image.Image, boxes: npt.NDArray[np.float32], out: Pixels | None = None) -> Pixels:
        """Cut views out of an upright RGB image.

        Args:
            image: RGB.
            boxes: float32 [k, 4], pixels; fractions are widened to whole pixels, and the box is kept in the image.
            out: where the pixels go; None: into a new array.

        Returns:
            uint8 [k, size, size, 3]: channels last, as images are decoded and as convolutions are fastest.
        """
        pixels = np.empty((len(boxes), self.size, self.size, 3), dtype=np.uint8) if out is None else out
        for row, box in enumerate(boxes):
            pixels[row] = self._view(image, box)
        return pixels

    def _view(self, image: Image.Image, box: Sequence[float] | npt.NDArray[np.float32]) -> Pixels:
        x0, y0 = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
        x1, y1 = min(image.width, math.ceil(box[2])), min(image.height, math.ceil(box[3]))
        if self._keeps_aspect:
            (x0, x1), (y0, y1) = self._middle(x0, x1, y1 - y0), self._middle(y0, y1, x1 - x0)
        view = image if (x0, y0, x1, y1) == (0, 0, *image.size) else image.crop((x0, y0, x1, y1))
        for step in self._geometry:
            view = step(view)
        return np.asarray(view)

    def _middle(self, start: int, stop: int, other: int) -> tuple[int, int]:
        """The middle of a side that is more than S times the other.

        Scaled with its aspect kept, 1 x 20,000 pixels would take gigabytes before the centre is cut out, or have no
        width left.
        """
        excess = max(0, stop - start - self.size * max(1, other))
        return start + excess // 2, stop - (excess - excess // 2)


def _is_geometry(step: object) -> bool:
    return any(word in type(step).__name__ for word in ("Resize", "Crop"))


def normalise(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Scale bytes to [0, 1], then subtract the mean and divide by the deviation of each channel.

    Args:
        pixels: uint8 [B, 3, S, S], on any device, in any memory format, which the result keeps.
        preprocessing: of the teacher.

    Returns:
        float32 [B, 3, S, S], with exactly the values of open_clip's own transform.
    """
    mean = torch.tensor(preprocessing.mean, device=pixels.device)[:, None, None]
    std = torch.tensor(preprocessing.std, device=pixels.device)[:, None, None]
    # In place: a new tensor for each operation takes twice the time on a processor.
    return pixels.float().div_(255).sub_(mean).div_(std)
