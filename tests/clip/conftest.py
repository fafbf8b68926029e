from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipdistill.clip import teacher
from clipdistill.datasets import images
from clipdistill.datasets.table import ImageTable


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the tiny architecture, as the pipeline writes a teacher of its own."""
    import yaml
    from safetensors.torch import save_file

    from clipdistill import store

    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    teacher.register_architectures()
    model = teacher.create("scenes-tiny")
    path = folder / "scenes.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    card = {"architecture": "scenes-tiny", "sha256": store.file_sha256(path)}
    (folder / "scenes.yaml").write_text(yaml.safe_dump(card))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> ImageTable:
    """Table of 60 small noise images of several sizes."""
    rng = np.random.default_rng(0)
    names, hashes, sizes = [], [], []
    for i in range(60):
        size = (40 + i % 7, 48 - i % 5)
        path = tmp_path / f"{i:03d}.png"
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        names.append(path.name)
        hashes.append(images.content_hash(path.read_bytes()))
        sizes.append(size)
    widths, heights = (np.array(side, np.int32) for side in zip(*sizes, strict=True))
    return ImageTable(tmp_path, names, names, widths, heights, np.ones(60, np.int64), hashes, 10**7)
