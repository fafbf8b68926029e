"""A student as one ONNX file: bytes of pixels in, scores and maps out.

Normalisation and the head's sigmoid or softmax are in the graph, so that what is left to do outside is to squash the
RGB image to a square, which every image library can. The file's metadata say how, and hold classes and thresholds.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from clipdistill import __version__
from clipdistill.application.student import Student
from clipdistill.errors import ClipdistillError
from clipdistill.store import write_atomically
from clipdistill.students import classifier, preprocessing
from clipdistill.students.student_yaml import Card

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference between a score of the graph and torch's; of a map, as a share of its largest value."""

INPUT, OUTPUTS = "pixels", ("scores", "maps")

OnnxModel: TypeAlias = Any
"""onnx.ModelProto, whose package is an extra."""


class Graph(nn.Module):
    """What is exported: preprocessing, network and head.

    Args:
        student: loaded.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.network = student.network
        self._head = student.card.head

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Score a batch: uint8 [B, 3, S, S] to scores [B, C] and maps [B, C, h, w], float32."""
        logits, maps = self.network(preprocessing.normalise(pixels))
        return classifier.scores(logits, self._head), maps


def export_onnx(student: Student, file: Path) -> float | None:
    """Write the ONNX file of a student, complete and checked, or nothing.

    Args:
        student: on the CPU.
        file: to write.

    Returns:
        The largest difference that onnxruntime's outputs have from torch's (see `TOLERANCE`); None where onnxruntime is
        not installed, and nothing was compared.

    Raises:
        ClipdistillError: the packages of the extra `onnx` are missing, or the graph computes something else.
        ArtifactError: the disk refuses.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ClipdistillError(f"export needs {' and '.join(missing)}: pip install 'clipdistill[onnx]'")
    graph = Graph(student).eval()
    model = _traced(graph, student.image_size)
    _describe(model, student.card)
    content = model.SerializeToString(deterministic=True)
    difference = _difference(content, graph, student.image_size)
    if difference is not None and not difference <= TOLERANCE:
        raise ClipdistillError(
            f"{file}: onnxruntime's outputs differ from torch's by {difference:.2g}, more than {TOLERANCE}: nothing "
            "was written; try other versions of onnxscript and onnxruntime (constraints.txt names tested ones)"
        )
    write_atomically(file, content)
    return difference


def metadata(card: Card) -> dict[str, str]:
    """What the file says of itself: text by key, most of it JSON.

    Args:
        card: of the student.
    """
    size = card.preprocessing.image_size
    prepare = {
        "input": f"{INPUT}: uint8 [batch, 3, {size}, {size}], channels R, G, B, values 0 to 255",
        "resize": f"apply the EXIF orientation, convert to RGB, squash the whole image to {size} x {size} pixels",
        "interpolation": "bilinear with a filter against aliasing (Pillow: Image.Resampling.BILINEAR)",
        "normalisation": "in the graph",
    }
    return {
        "producer": f"clipdistill {__version__}",
        "classes": json.dumps(card.classes, ensure_ascii=False),
        "thresholds": json.dumps(card.thresholds),
        "preprocessing": json.dumps(prepare),
        "image_size": str(size),
        "scores": f"float32 [batch, {len(card.classes)}] in [0, 1], {card.head}; present from the class's threshold on",
        "maps": "float32 [batch, classes, h, w], class activation maps over the whole image",
        "student_sha256": card.sha256,
    }


def _traced(graph: Graph, size: int) -> OnnxModel:
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    shapes = {INPUT: {0: torch.export.Dim("batch", min=1)}}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph, (example,), input_names=[INPUT], output_names=list(OUTPUTS), dynamic_shapes=shapes, verbose=False
        )
    if program is None:
        raise ClipdistillError("PyTorch returned no ONNX graph: try another version of onnxscript")
    return program.model_proto


def _describe(model: OnnxModel, card: Card) -> None:
    """Put the metadata in place of what the exporter left, traces of this machine's source files among it."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    del model.metadata_props[:]
    for key, value in metadata(card).items():
        model.metadata_props.add(key=key, value=value)


def _difference(content: bytes, graph: Graph, size: int) -> float | None:
    if importlib.util.find_spec("onnxruntime") is None:
        logger.warning("onnxruntime is not installed: the file was not compared with torch")
        return None
    import onnxruntime  # noqa: PLC0415 - of an extra

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    rng, worst = np.random.default_rng(0), 0.0
    for images in (1, 3):
        pixels = rng.integers(0, 256, (images, 3, size, size), dtype=np.uint8)
        with torch.inference_mode():
            expected = [tensor.numpy() for tensor in graph(torch.from_numpy(pixels))]
        scores, maps = session.run(list(OUTPUTS), {INPUT: pixels})
        largest = max(1.0, float(np.abs(expected[1]).max()))
        worst = max(
            worst,
            float(np.abs(scores - expected[0]).max()),
            float(np.abs(maps - expected[1]).max()) / largest,
        )
    return worst
