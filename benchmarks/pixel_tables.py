"""What `benchmarks/decode.py` times: the images, and tables of ways to decode, resize, stack and embed them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import pixel_ways
from clipdistill.clip import views
from clipdistill.clip.encoder import ImageEncoder
from clipdistill.clip.preprocessing import Pixels, Preprocessing, normalise
from clipdistill.datasets import images
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ClipdistillError, ParamsError
from clipdistill.params import SnippetViewParams
from drawn import draw_table
from image_tower import random_teacher

# Views a forward pass: as fast a view as more of them, or faster, on one core.
BATCH = 16


@dataclass(frozen=True, slots=True)
class Way:
    """Something to be timed.

    Attributes:
        run: does it for `count` items.
        count: images or views.
    """

    run: Callable[[], Any]
    count: int


@dataclass(frozen=True, slots=True)
class Table:
    """Ways to the same thing.

    Attributes:
        ways: by name.
        reference: uint8 [..., 3], what the project makes of each item; None: nothing to compare.
        to_array: one item of what a way returns, to an array like the reference's.
        clock: seconds; this thread's own, where no other works for it.
    """

    ways: dict[str, Way]
    reference: list[Pixels] | None = None
    to_array: Callable[[Any], Pixels] = np.asarray
    clock: Callable[[], float] = time.thread_time

    def differences(self) -> dict[str, dict[str, float]]:
        """How far each way is from the reference; one that gives another size is left out."""
        found: dict[str, dict[str, float]] = {}
        if self.reference is None:
            return found
        for name, way in self.ways.items():
            results = [self.to_array(item) for item in way.run()]
            if all(a.shape == b.shape for a, b in zip(results, self.reference, strict=True)):
                found[name] = pixel_ways.difference(results, self.reference)
        return found


@dataclass(frozen=True, slots=True)
class Bench:
    """The images of one size, and what they become.

    Attributes:
        table: the images.
        contents: their files.
        reference: decoded by the project.
        boxes: float32 [10, 4], the whole image first; the same for every image.
        preprocessing: of the encoders.
    """

    table: ImageTable
    contents: list[bytes]
    reference: list[pixel_ways.Decoded]
    boxes: pixel_ways.Boxes
    preprocessing: Preprocessing

    def decode(self, decoder: pixel_ways.Decoder) -> list[pixel_ways.Decoded]:
        """Every image."""
        return [decoder(data) for data in self.contents]

    def resize(self, resize: pixel_ways.Resize, boxes: pixel_ways.Boxes) -> list[Pixels]:
        """Those boxes of every image."""
        return [resize(image, boxes) for image in self.reference]

    def views(self, boxes: pixel_ways.Boxes) -> list[Pixels]:
        """Those boxes of every image as the project cuts them."""
        return self.resize(pixel_ways.project_resize(self.preprocessing), boxes)

    def path(self, decoder: pixel_ways.Decoder, resize: pixel_ways.Resize) -> list[Pixels]:
        """All views of every image, each decoded once."""
        return [resize(decoder(data), self.boxes) for data in self.contents]


def build(folder: Path, count: int, size: tuple[int, int], preprocessing: Preprocessing, seed: int) -> Bench:
    """Draw the images of one size, (width, height), into a folder that is made."""
    folder.mkdir()
    table = draw_table(folder, count, size, np.random.default_rng(seed))
    contents = [(folder / name).read_bytes() for name in table.paths]
    grid = SnippetViewParams()
    boxes = np.concatenate([views.whole(table).box[:1], views.snippets(table, grid).box[: grid.grid**2]])
    reference: list[pixel_ways.Decoded] = [images.decode(data, "image", pixel_ways.NO_LIMIT) for data in contents]
    return Bench(table, contents, reference, boxes, preprocessing)


def decode_table(bench: Bench, decoders: dict[str, pixel_ways.Decoder]) -> Table:
    """Each decoder, and the draft mode; ms an image."""
    ways = {**decoders, pixel_ways.DRAFT: pixel_ways.draft(bench.preprocessing.size)}
    return Table(
        {name: Way(lambda way=way: bench.decode(way), len(bench.table)) for name, way in ways.items()},
        [np.asarray(image) for image in bench.reference],
    )


def resize_table(bench: Bench, resizes: dict[str, pixel_ways.Resize], boxes: pixel_ways.Boxes) -> Table:
    """Each resize on decoded images; ms a view."""
    count = len(bench.table) * len(boxes)
    return Table(
        {name: Way(lambda way=way: bench.resize(way, boxes), count) for name, way in resizes.items()},
        bench.views(boxes),
    )


def path_table(bench: Bench, decoders: dict[str, pixel_ways.Decoder], resizes: dict[str, pixel_ways.Resize]) -> Table:
    """Each decoder with each resize, to all views of an image; ms an image."""
    ways = {
        f"{first} + {second}": Way(lambda a=decoder, b=resize: bench.path(a, b), len(bench.table))
        for first, decoder in decoders.items()
        for second, resize in resizes.items()
    }
    return Table(ways, bench.views(bench.boxes))


def rest_table(bench: Bench) -> Table:
    """What an image passes besides decoding and resizing; ms of an image with its ten views.

    Raises:
        ClipdistillError: two ways to normalise do not give the project's values.
    """
    paths = [bench.table.root / name for name in bench.table.paths]
    last = [np.ascontiguousarray(ten) for ten in bench.views(bench.boxes)]
    cut = [[Image.fromarray(view) for view in ten] for ten in last]
    first = [np.ascontiguousarray(ten.transpose(0, 3, 1, 2)) for ten in last]
    mean, std = (
        torch.tensor(numbers)[:, None, None] for numbers in (bench.preprocessing.mean, bench.preprocessing.std)
    )

    def channels_first(ten: Pixels) -> torch.Tensor:
        values = torch.from_numpy(ten).float().div(255).sub(mean).div(std)
        return values.to(torch.bfloat16, memory_format=torch.channels_last)

    def channels_last(ten: Pixels) -> torch.Tensor:
        values = torch.from_numpy(ten).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
        return values.to(torch.bfloat16, memory_format=torch.channels_last)

    for ten, other in zip(first, last, strict=True):
        expected = normalise(torch.from_numpy(ten), bench.preprocessing).to(torch.bfloat16)
        if not (torch.equal(channels_first(ten), expected) and torch.equal(channels_last(other), expected)):
            raise ClipdistillError("two ways to normalise give other values than the project: their times say nothing")
    actions: dict[str, Callable[[], Any]] = {
        "read the file": lambda: [path.read_bytes() for path in paths],
        "hash it, BLAKE2b": lambda: [images.content_hash(data) for data in bench.contents],
        "stack, channels first": lambda: [np.stack([_exchanged(view) for view in ten]) for ten in cut],
        "stack, channels last": lambda: [np.stack([np.asarray(view) for view in ten]) for ten in cut],
        "join to a batch": lambda: np.concatenate(last),
        "normalise, channels first, new tensors": lambda: [channels_first(ten) for ten in first],
        "normalise, channels last, in place": lambda: [channels_last(ten) for ten in last],
    }
    return Table({name: Way(action, len(bench.table)) for name, action in actions.items()})


def _exchanged(view: Image.Image) -> Pixels:
    """A view as uint8 [3, S, S]."""
    return np.asarray(view).transpose(2, 0, 1)


def encoder_table(models: list[str], side: int, seed: int) -> Table:
    """A full batch through each model's image tower, from bytes to embeddings; ms a view.

    Raises:
        ParamsError: a model is unknown, or takes views of another size.
    """
    batch = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8))
    ways = {}
    for name in models:
        clip = random_teacher(name, seed)
        if clip.preprocessing.size != side:
            raise ParamsError(f"--side: {name} takes views of {clip.preprocessing.size} pixels, not of {side}")
        encoder = ImageEncoder(clip, "bf16", torch.device("cpu"))
        ways[name] = Way(lambda encoder=encoder: encoder(batch), BATCH)
    return Table(ways)


def device_tables(bench: Bench, decoders: dict[str, pixel_ways.DeviceDecoder]) -> dict[str, Table]:
    """NvJPEG on one batch of all images, ms an image; the resize of all views, ms a view; both waited for."""
    side, on_device = bench.preprocessing.size, [pixel_ways.as_tensor(image)[0].cuda() for image in bench.reference]

    def waited(action: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        result = action()
        torch.cuda.synchronize()
        return result

    def resize() -> list[torch.Tensor]:
        return [pixel_ways.device_resize(image, bench.boxes, side) for image in on_device]

    count = len(bench.table)
    decode = {name: Way(lambda way=way: waited(lambda: way(bench.contents)), count) for name, way in decoders.items()}
    views_in_all = {"torch": Way(lambda: waited(resize), count * len(bench.boxes))}
    decoded = [np.asarray(image) for image in bench.reference]
    resized = bench.views(bench.boxes)
    wall = time.perf_counter
    return {
        "decode on the GPU": Table(decode, decoded, lambda image: image.permute(1, 2, 0).cpu().numpy(), wall),
        "resize on the GPU": Table(views_in_all, resized, lambda ten: ten.cpu().numpy(), wall),
    }
