"""Where a student points: boxes around the high places of its class activation maps, as a view table.

Two clean passes over the images: the first finds the classes that each image is asked about, the second their maps. So
only the maps that are used are ever enlarged, and memory does not grow with classes times images times pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipdistill import distributed, store
from clipdistill.datasets.table import ImageTable
from clipdistill.methods import ccd
from clipdistill.params import CcdLocalizeParams, Params
from clipdistill.stage import Paths
from clipdistill.students import backbones, model_folder, preprocessing, student_yaml
from clipdistill.students.classifier import Student
from clipdistill.training.data import ImageSource
from clipdistill.training.predict import arithmetic_of, autocast

logger = logging.getLogger(__name__)

# Side of the maps on which boxes are found: corners fall on 1/160 of the image's side, well below any margin.
_GRID = 160
_BATCH = 64


@dataclass(frozen=True, slots=True)
class PointedViews:
    """V views of N images, in image order, by class within an image.

    Attributes:
        box: float32 [V, 4]: x0, y0, x1, y1 in pixels of the upright image.
        offset: int64 [N + 1]; the views of image i are rows offset[i] to offset[i + 1], possibly none.
        category: int32 [V], column of the class whose map drew the box.
        probability: float32 [V], the student's of that class.
        threshold: probability from which a class was looked for.
    """

    box: npt.NDArray[np.float32]
    offset: npt.NDArray[np.int64]
    category: npt.NDArray[np.int32]
    probability: npt.NDArray[np.float32]
    threshold: float

    def write(self, out: Path, provenance: dict[str, Any]) -> None:
        """Write the view table."""
        arrays: dict[str, store.Array] = {
            "box": self.box,
            "offset": self.offset,
            "category": self.category,
            "probability": self.probability,
        }
        store.write_group(out, arrays, {**provenance, "threshold": self.threshold})


def localize(folder: Path, table: ImageTable, params: CcdLocalizeParams, compute: distributed.Compute) -> PointedViews:
    """Ask a student where the classes are that it sees most in the images.

    Under torchrun all processes call this together, within a process group.

    The classes are chosen in the very pass whose size and arithmetic the maps have (CCD, arXiv 2503.16873; the released
    code chooses at another size than it looks).

    Args:
        folder: of the student.
        table: N images.
        params: section `ccd.localize`.
        compute: device, threads, batch size.

    Raises:
        ArtifactError: the folder holds no whole student.
        ParamsError: the network has no such output stride.
        UnreadableImageError: a file is gone, changed or broken.
    """
    pointer = Pointer(folder, params, compute)
    images = ImageSource(table, pointer.image_size, "auto", compute.worker_count())
    probabilities = pointer.probabilities(images)
    classes = probabilities.shape[1]
    # As many as there are would look for every class in every image, whatever the student sees.
    wanted = params.classes_per_image if params.classes_per_image < classes else classes / 2
    chosen, threshold = ccd.select_classes(probabilities, wanted)
    row, category = chosen.nonzero(as_tuple=True)
    share = pointer.boxes(images, row, category)
    sides = np.stack([table.widths, table.heights, table.widths, table.heights], axis=1).astype(np.float32)
    return PointedViews(
        box=share.numpy() * sides[row.numpy()],
        offset=np.concatenate([[0], np.cumsum(chosen.sum(dim=1).numpy())]).astype(np.int64),
        category=category.numpy().astype(np.int32),
        probability=probabilities[row, category].float().numpy(),
        threshold=threshold,
    )


def point(student: Path, out: Path, params: Params, compute: distributed.Compute) -> None:
    """Write the view table of the places that a student points at in the training images.

    Under torchrun all processes call this together.

    Args:
        student: its folder.
        out: the view table.
        params: all parameters.
        compute: device, threads, batch size.
    """
    table = ImageTable.load(Paths(params.dataset.name).table("train"))
    with distributed.process_group(compute.torch_device()):
        views = localize(student, table, params.ccd.localize, compute)
        if distributed.rank() == 0:
            provenance = {"student": student_yaml.read(student).sha256, **params.ccd.localize.model_dump()}
            views.write(out, {"table": table.fingerprint, **provenance})
            logger.info(
                "%d views of %d images, of classes from probability %.3f on",
                len(views.box),
                len(table),
                views.threshold,
            )
        distributed.barrier()


class Pointer:
    """A student that is asked where it sees things.

    Attributes:
        image_size: side of its input, pixels.

    Args:
        folder: of the student.
        params: section `ccd.localize`.
        compute: device, threads, batch size.
    """

    def __init__(self, folder: Path, params: CcdLocalizeParams, compute: distributed.Compute) -> None:
        self._params = params
        self._device = compute.torch_device()
        self._batch = compute.batch_size or _BATCH
        torch.set_num_threads(compute.thread_count())
        student, card = model_folder.load(folder)
        own = card.preprocessing.image_size
        self.image_size = own if params.image_size == "student" else params.image_size
        stride = backbones.finer_stride(card.backbone, card.output_stride, params.output_stride)
        backbones.refine_map(student.features, card.backbone, card.output_stride, stride)
        self._student: Student = student.to(device=self._device).to(memory_format=torch.channels_last)
        self._dtype = arithmetic_of(card)

    def probabilities(self, images: ImageSource) -> Tensor:
        """Score every image, float64 [N, C], in [0, 1], on the CPU: in float32 sure scores would be tied at 1.

        The processes share the rows, and all get the whole.
        """
        own = np.arange(*distributed.slice_of(len(images)))
        parts = [torch.empty(0, self._student.head.out_channels, dtype=torch.float64)]
        parts += [torch.sigmoid(logits.double()).cpu() for logits, _ in self._passes(images, own)]
        return distributed.gather_rows(torch.cat(parts), len(images))

    def boxes(self, images: ImageSource, row: Tensor, category: Tensor) -> Tensor:
        """Boxes around the places of some classes in some images; the processes share them, and all get the whole.

        Args:
            images: N.
            row: int64 [V], ascending.
            category: int64 [V].

        Returns:
            float32 [V, 4], x0, y0, x1, y1 as shares of the image's sides, on the CPU.
        """
        params, parts = self._params, [torch.empty(0, 4)]
        own = slice(*distributed.slice_of(len(row)))
        for maps in self.maps(images, row[own], category[own]):
            for some in torch.split(maps, self._batch):
                large = ccd.upsample_cam(some, _GRID)
                parts.append(ccd.cam_boxes(large, params.mask, params.margin, params.component).cpu())
        return distributed.gather_rows(torch.cat(parts), len(row))

    def maps(self, images: ImageSource, row: Tensor, category: Tensor) -> Iterator[Tensor]:
        """Class activation maps of some classes in some images; each image is passed once.

        Args:
            images: N.
            row: int64 [V], ascending.
            category: int64 [V].

        Yields:
            float32 [v, h, w], on the device; v adds up to V.
        """
        wanted, place = torch.unique_consecutive(row, return_inverse=True)
        done = 0
        for _, cam in self._passes(images, wanted.numpy()):
            start, stop = torch.searchsorted(place, torch.tensor([done, done + len(cam)])).tolist()
            yield cam[(place[start:stop] - done).to(cam.device), category[start:stop].to(cam.device)]
            done += len(cam)

    def _passes(self, images: ImageSource, rows: npt.NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [B, C] and maps [B, C, h, w] of rows, batch by batch."""
        batches = np.split(rows, range(self._batch, len(rows), self._batch)) if len(rows) else []
        for pixels in images.batches(batches):
            values = preprocessing.normalise(pixels.to(self._device, non_blocking=True))
            with torch.inference_mode(), autocast(self._device, self._dtype):
                logits, cam = self._student(values)
            yield logits, cam
