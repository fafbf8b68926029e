"""A folder with a few captioned scenes, a CLIP with random weights, and the parameters of a quick TTD."""

from __future__ import annotations

import shutil
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from clipdistill.clip import teacher
from clipdistill.datasets.captions.collect import collect_all
from clipdistill.datasets.scenes.tagged import generate_tagged
from clipdistill.params import CaptionParams, Params, ScenesParams, TaggedScenesParams
from clipdistill.store import file_sha256

PAIRS = 20


def make_project(folder: Path) -> None:
    """Write data/raw/scenes-tagged, its caption tables, and weights.safetensors."""
    generate_tagged(
        ScenesParams(image_size=64),
        TaggedScenesParams(train_images=PAIRS, val_images=10),
        folder / "data/raw/scenes-tagged",
        workers=1,
    )
    teacher.register_architectures()
    torch.manual_seed(0)
    model = teacher.create("scenes-tiny")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    safetensors.torch.save_file(model.state_dict(), folder / "weights.safetensors")


def copied(folder: Path, place: Path) -> Path:
    """A project of its own for a test."""
    shutil.copytree(folder, place)
    return place


def params_of(folder: Path, **changes: object) -> Params:
    """Parameters for the project, which has to be the current folder; `changes` are of section `ttd`."""
    weights = folder / "weights.safetensors"
    content = {
        "dataset": {"name": "toy"},
        "clip": {"source": "file", "weights": str(weights), "sha256": file_sha256(weights)},
        "ttd": {
            "image_size": 64,
            "keep": 0.5,
            "recipe": {"epochs": 3, "batch_size": 4, "precision": "fp32", "learning_rate": 0.01},
            "segment": {"image_size": 64, "window": 64, "scales": [1.0], "pamr": 2, "train_images": 4},
            **changes,
        },
    }
    return Params.model_validate(content)


def write_captions() -> None:
    """Caption tables of the project in the current folder."""
    collect_all(CaptionParams(), "toy", 1)
