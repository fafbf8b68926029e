"""MKT's training in a second: the drawn squares of toy_training, an open vocabulary, and a teacher of random weights.

Everything lies as the pipeline lays it out, below the current folder. Also a script for processes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from safetensors.torch import save_file
from toy_training import Presence, Toy, make_table

from clipdistill import store
from clipdistill.clip import teacher
from clipdistill.datasets.table import ClassName, ImageTable, write_classes, write_labels
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.training.mkt_prompt import tune_prompt
from clipdistill.training.mkt_student import train_mkt
from clipdistill.training.mkt_vocabulary import write_seen

PATHS = Paths("toy")
SEEN = [ClassName("red", "red square"), ClassName("green", "green square"), ClassName("empty", "dark picture")]
UNSEEN = [ClassName("blue", "blue square", seen=False), ClassName("violet", "violet thing", seen=False)]
LABELS = SEEN + UNSEEN
CLASSES = [replace(item, seen=True) for item in (SEEN[0], UNSEEN[0], SEEN[1])]
"""Of the data set itself, in its own order: one of them is unseen in the open vocabulary."""

VIT = "toy-vit"
"""A vision transformer of 32 pixels and 16 patches, whose places are embedded."""

_VIT_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 3, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@dataclass(frozen=True, slots=True)
class ToyTeacher:
    """Weights in a file.

    Attributes:
        model: open_clip's name.
        weights: file.
    """

    model: str
    weights: Path

    @property
    def params(self) -> dict[str, str]:
        """Section `clip`."""
        return {
            "source": "file",
            "model": self.model,
            "weights": str(self.weights),
            "sha256": store.file_sha256(self.weights),
        }


def make_teacher(folder: Path, model: str = "scenes-tiny", seed: int = 0) -> ToyTeacher:
    """Write random weights of an architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    teacher.register_architectures()
    config = folder / f"{VIT}.json"
    config.write_text(json.dumps(_VIT_CONFIG))
    open_clip.add_model_config(config)
    torch.manual_seed(seed)
    path = folder / f"{model}-{seed}.safetensors"
    save_file({name: value.contiguous() for name, value in teacher.create(model).state_dict().items()}, path)
    return ToyTeacher(model, path)


@dataclass(frozen=True, slots=True)
class ToyData:
    """Images and which of the three colours each has.

    Attributes:
        train: images to learn from.
        val: images to score.
    """

    train: Toy
    val: Toy


def make_data(folder: Path) -> ToyData:
    """20 images to learn from: with batches of 8 an epoch has 3 updates; and 12 to score."""
    return ToyData(make_table(folder / "train", 20), make_table(folder / "val", 12, seed=1))


def truth(presence: Presence, labels: list[ClassName] = LABELS) -> Presence:
    """Ground truth int8 [N, L] of the open vocabulary's labels."""
    red, green, blue = (presence[:, column] for column in range(3))
    column = {"red": red, "green": green, "blue": blue, "violet": red & blue, "empty": 1 - (red | green | blue)}
    return np.stack([column[item.name] for item in labels], axis=1)


def lay_out(
    data: ToyData,
    labels: list[ClassName] = LABELS,
    train_truth: Presence | None = None,
    cosines: npt.NDArray[np.float32] | None = None,
) -> None:
    """Write what the stages before MKT's leave, below the current folder, and then what `seen@mkt` does.

    Args:
        data: images.
        labels: the open vocabulary.
        train_truth: int8 [N, L], in place of what the training images show.
        cosines: float32 [N, C], of the whole images with CLASSES, in place of `toy_cosines`.
    """
    write_classes(PATHS.classes, CLASSES)
    write_classes(PATHS.open_classes, labels)
    for split, (table, presence) in (("train", data.train), ("val", data.val)):
        table.write(PATHS.table(split))
        own = truth(presence, labels)
        write_labels(
            PATHS.open_labels(split),
            own if train_truth is None or split == "val" else train_truth,
            table,
            labels,
        )
    write_similarity(data.train[0], toy_cosines(data.train[1]) if cosines is None else cosines)
    write_seen(Params.model_validate({"dataset": {"name": "toy"}}))


def toy_cosines(presence: Presence) -> npt.NDArray[np.float32]:
    """Unsure cosines of images with CLASSES (red, blue, green), [N, C]."""
    noise = np.random.default_rng(5).normal(0, 0.02, (len(presence), 3))
    return (0.2 + 0.05 * presence[:, [0, 2, 1]] + noise).astype(np.float32)


def write_similarity(table: ImageTable, cosines: npt.NDArray[np.float32]) -> None:
    """Write cosines of the whole images, [N, C], and of two snippets of each, as `similarity` does."""
    arrays: dict[str, store.Array] = {
        "global": cosines,
        "snippets": np.repeat(cosines, 2, axis=0) + np.tile(np.float32([[0.01], [-0.01]]), (len(cosines), 1)),
        "offset": np.arange(len(cosines) + 1, dtype=np.int64) * 2,
    }
    provenance = {"table": table.fingerprint, "text": {"logit_scale": 20.0}}
    store.write_group(PATHS.similarity("train"), arrays, provenance)


def write_pseudo_labels(method: str, table: ImageTable, labels: npt.NDArray[np.float32]) -> None:
    """Write pseudo labels [N, C] of CLASSES as `pseudo_label` does, or CCD."""
    provenance: dict[str, Any] = {"table": table.fingerprint}
    if method != "ccd":
        provenance["text"] = {"classes": [item.name for item in CLASSES]}
    store.write_group(PATHS.labels(method), {"labels": labels}, provenance)


def write_embeddings(split: str, table: ImageTable, clip: ToyTeacher, width: int = 64) -> npt.NDArray[np.float32]:
    """Write embeddings [N, D] of the whole images as `embed@global` does; what they are is drawn at random."""
    found = np.random.default_rng(3).normal(size=(len(table), width)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    identity = teacher.load(make_params(clip).clip).identity
    store.write_group(PATHS.embeddings(split, "global"), {"embedding": found}, {"table": table.fingerprint, **identity})
    return found


def make_params(clip: ToyTeacher, recipe: dict[str, Any] | None = None, **mkt: Any) -> Params:  # noqa: ANN401
    """Parameters: two epochs of batches of 8 in each stage, of two patches a label; and what differs."""
    section = {
        "k": 2,
        "student": {"image_size": 64},
        "recipe": {"epochs": 2, "batch_size": 8, "precision": "fp32"} | (recipe or {}),
        "tune": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
    }
    return Params.model_validate({"dataset": {"name": "toy"}, "clip": clip.params, "mkt": section | mkt})


def train(params: Params, tune: bool = True) -> None:
    """Train both stages below the current folder, or the first alone."""
    train_mkt(params, ["none"])
    if tune:
        tune_prompt(params, ["none"])


if __name__ == "__main__":
    teacher.register_architectures()
    train(Params.model_validate(json.loads(sys.argv[1])))
