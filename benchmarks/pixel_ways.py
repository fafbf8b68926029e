"""Ways from a JPEG file to the pixels of views, for `benchmarks/decode.py`: decoders and resizes, on a GPU too.

Each decoder takes a file's bytes, each resize one decoded image and its boxes. Where the two do not speak alike, the
resize converts, and its time counts. What is not installed is left out, with the reason.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision.transforms import v2

from clipdistill.clip.preprocessing import Pixels, Preprocessing, ViewTransform
from clipdistill.datasets import images

Decoded: TypeAlias = Image.Image | Pixels
"""RGB: Pillow's image, or uint8 [H, W, 3]."""
Boxes: TypeAlias = npt.NDArray[np.float32]
Decoder: TypeAlias = Callable[[bytes], Decoded]
Resize: TypeAlias = Callable[[Decoded, Boxes], Pixels]
"""One image and its boxes [k, 4], whole pixels, to uint8 [k, S, S, 3]."""
DeviceDecoder: TypeAlias = Callable[[list[bytes]], list[torch.Tensor]]
"""A batch of files to uint8 [3, H, W] each, on the CUDA device."""

Way = TypeVar("Way")

NO_LIMIT = 2**62
PROJECT, DRAFT = "Pillow", "Pillow, draft"


def as_image(decoded: Decoded) -> Image.Image:
    """Pillow's image."""
    return decoded if isinstance(decoded, Image.Image) else Image.fromarray(decoded)


def as_array(decoded: Decoded) -> Pixels:
    """uint8 [H, W, 3], which may be written to, as torch asks for."""
    return np.array(decoded) if isinstance(decoded, Image.Image) else decoded


def as_tensor(decoded: Decoded) -> torch.Tensor:
    """uint8 [1, 3, H, W] with the channels of a pixel side by side, as they were decoded."""
    return torch.from_numpy(as_array(decoded)).permute(2, 0, 1)[None]


def corners(boxes: Boxes) -> list[tuple[int, int, int, int]]:
    """x0, y0, x1, y1 of each box."""
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.astype(int).tolist()]


def _project() -> Decoder:
    return lambda data: images.decode(data, "image", NO_LIMIT)


def draft(side: int) -> Decoder:
    """Pillow's reduced decoding: the smallest of 1/1, 1/2, 1/4, 1/8 of the size that holds a square of `side`."""

    def decode(data: bytes) -> Decoded:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (side, side))
        image.load()
        return image

    return decode


def _simplejpeg() -> Decoder:
    return importlib.import_module("simplejpeg").decode_jpeg


def _torchvision() -> Decoder:
    decode_jpeg, mode = torchvision.io.decode_jpeg, torchvision.io.ImageReadMode.RGB

    def decode(data: bytes) -> Decoded:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(content, mode=mode).permute(1, 2, 0).numpy()

    return decode


def _torchcodec() -> Decoder:
    decode_jpeg = importlib.import_module("torchcodec.decoders").decode_jpeg
    return lambda data: decode_jpeg(data).permute(1, 2, 0).numpy()


def _cv2() -> Decoder:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    flag = cv2.IMREAD_COLOR_RGB
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flag)


def decoders() -> tuple[dict[str, Decoder], dict[str, str]]:
    """Decoders of the whole picture by name, the project's first; and why others are left out."""
    makers = {
        PROJECT: _project,
        "simplejpeg": _simplejpeg,
        "torchvision": _torchvision,
        "torchcodec": _torchcodec,
        "OpenCV": _cv2,
    }
    return available(makers)


def project_resize(preprocessing: Preprocessing) -> Resize:
    """The project's own, which brings the whole view to the square."""
    transform = ViewTransform(preprocessing, "squash")
    return lambda decoded, boxes: transform(as_image(decoded), boxes)


def resizes(preprocessing: Preprocessing) -> tuple[dict[str, Resize], dict[str, str]]:
    """Bicubic resizes to the encoder's square by name, the project's first; and why others are left out."""
    side = preprocessing.size
    makers: dict[str, Callable[[], Resize]] = {
        PROJECT: lambda: project_resize(preprocessing),
        "Pillow, box": lambda: _box(side),
        "torch uint8": lambda: _torch_uint8(side),
        "torchvision v2": lambda: _torchvision_v2(side),
        "OpenCV cubic": lambda: _cv2_cubic(side),
    }
    return available(makers)


def available(makers: dict[str, Callable[[], Way]]) -> tuple[dict[str, Way], dict[str, str]]:
    """Make what can be made on this machine; and say why the rest cannot."""
    found: dict[str, Way] = {}
    skipped: dict[str, str] = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        # A library may be there in another version, or built for another torch: then it lacks a name or fails to load.
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            skipped[name] = str(error).strip().splitlines()[0]
    return found, skipped


def _box(side: int) -> Resize:
    """Pillow without a crop: its filter then sees pixels outside the box."""

    def resize(decoded: Decoded, boxes: Boxes) -> Pixels:
        image = as_image(decoded)
        views = [image.resize((side, side), Image.Resampling.BICUBIC, box=box) for box in corners(boxes)]
        return np.stack([np.asarray(view) for view in views])

    return resize


def _torch_uint8(side: int) -> Resize:
    def resize(decoded: Decoded, boxes: Boxes) -> Pixels:
        image = as_tensor(decoded)
        crops = (image[..., y0:y1, x0:x1] for x0, y0, x1, y1 in corners(boxes))
        views = torch.cat([F.interpolate(crop, (side, side), mode="bicubic", antialias=True) for crop in crops])
        return views.permute(0, 2, 3, 1).numpy()

    return resize


def _torchvision_v2(side: int) -> Resize:
    step = v2.Resize((side, side), v2.InterpolationMode.BICUBIC, antialias=True)

    def resize(decoded: Decoded, boxes: Boxes) -> Pixels:
        image = as_tensor(decoded)
        views = torch.cat([step(image[..., y0:y1, x0:x1]) for x0, y0, x1, y1 in corners(boxes)])
        return views.permute(0, 2, 3, 1).numpy()

    return resize


def _cv2_cubic(side: int) -> Resize:
    """Without antialias, which only matters where a view shrinks; and with another cubic (a = -0.75, Pillow's -0.5)."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)

    def resize(decoded: Decoded, boxes: Boxes) -> Pixels:
        image = as_array(decoded)
        crops = (image[y0:y1, x0:x1] for x0, y0, x1, y1 in corners(boxes))
        return np.stack([cv2.resize(crop, (side, side), interpolation=cv2.INTER_CUBIC) for crop in crops])

    return resize


def difference(found: list[Pixels], reference: list[Pixels]) -> dict[str, float]:
    """How far two lists of pixels are apart.

    Args:
        found: uint8 arrays, the last axis red, green and blue.
        reference: as many, of the same shapes.

    Returns:
        The largest difference in gray levels, and the share of pixels that differ in any channel.
    """
    gaps = [np.abs(a.astype(np.int16) - b.astype(np.int16)).max(axis=-1) for a, b in zip(found, reference, strict=True)]
    joined = np.concatenate([gap.ravel() for gap in gaps])
    return {"max_difference": int(joined.max()), "differing_pixels": round(float((joined > 0).mean()), 6)}


def device_decoders() -> tuple[dict[str, DeviceDecoder], dict[str, str]]:
    """Decoders on the CUDA device by name, both through nvJPEG; and why one is left out."""
    return available({"torchvision, nvJPEG": _torchvision_device, "torchcodec, nvJPEG": _torchcodec_device})


def _torchvision_device() -> DeviceDecoder:
    decode_jpeg, mode = torchvision.io.decode_jpeg, torchvision.io.ImageReadMode.RGB

    def decode(batch: list[bytes]) -> list[torch.Tensor]:
        contents = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in batch]
        return list(decode_jpeg(contents, mode=mode, device="cuda"))

    return decode


def _torchcodec_device() -> DeviceDecoder:
    decode_jpeg = importlib.import_module("torchcodec.decoders").decode_jpeg
    return lambda batch: list(decode_jpeg(batch, device="cuda"))


def device_resize(image: torch.Tensor, boxes: Boxes, side: int) -> torch.Tensor:
    """Views of a decoded image on its device, where torch resizes floating-point numbers alone.

    Args:
        image: uint8 [3, H, W].
        boxes: float32 [k, 4], whole pixels.
        side: of a view.

    Returns:
        uint8 [k, side, side, 3].
    """
    values = image[None].float()
    crops = (values[..., y0:y1, x0:x1] for x0, y0, x1, y1 in corners(boxes))
    views = torch.cat([F.interpolate(crop, (side, side), mode="bicubic", antialias=True) for crop in crops])
    return views.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
