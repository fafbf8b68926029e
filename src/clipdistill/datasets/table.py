"""The image table, the ground truth and the class list: what every later stage reads instead of raw files.

Row i of every array of a split is row i of its image table. The table is sorted by image id and never shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml
from PIL import Image

from clipdistill import store, yaml_text
from clipdistill.datasets import images, parquet_file
from clipdistill.errors import ArtifactError

Labels = npt.NDArray[np.int8]
Split = Literal["train", "val"]

SPLITS: tuple[Split, ...] = ("train", "val")

_KIND = parquet_file.Kind(
    "an image table",
    "run `dvc repro format`",
    pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("bytes", pa.int64(), nullable=False),
            pa.field("hash", pa.string(), nullable=False),
        ]
    ),
)


@dataclass(frozen=True, slots=True)
class ClassName:
    """A class, or a label of an open vocabulary.

    Attributes:
        name: its name in the data set.
        prompt: how a prompt says it.
        seen: whether training may see it; False only in an open vocabulary.
    """

    name: str
    prompt: str
    seen: bool = True


@dataclass(frozen=True, slots=True)
class ImageTable:
    """The N images of a split, sorted by id.

    Attributes:
        root: image root; `paths` are relative to it.
        ids: unique.
        paths: POSIX paths below the root.
        widths: pixels, upright [N].
        heights: pixels, upright [N].
        sizes: file sizes, bytes [N].
        hashes: `images.content_hash` of each file.
        max_pixels: limit under which the images were checked.
    """

    root: Path
    ids: list[str]
    paths: list[str]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int64]
    hashes: list[str]
    max_pixels: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """Hash of ids and contents in row order; where the files lie does not count."""
        return store.fingerprint([self.ids, self.hashes])

    def open(self, row: int) -> Image.Image:
        """Read image `row`: RGB, upright, its bytes compared with the table.

        Raises:
            UnreadableImageError: the file is gone, changed or broken.
        """
        return images.read(self.root / self.paths[row], self.hashes[row], self.max_pixels)

    def write(self, path: Path) -> None:
        """Write the table as Parquet, and beside it where the images lie: moving them changes no byte of the table."""
        columns = [self.ids, self.paths, self.widths, self.heights, self.sizes, self.hashes]
        parquet_file.write(path, _KIND.schema, columns, self.root, self.max_pixels)

    @classmethod
    def load(cls, path: Path) -> ImageTable:
        """Read a table.

        Raises:
            ArtifactError: missing or not a table of this project.
        """
        content = parquet_file.load(path, _KIND)
        columns = content.columns
        return cls(
            root=content.root,
            ids=columns["id"],
            paths=columns["path"],
            widths=columns["width"],
            heights=columns["height"],
            sizes=columns["bytes"],
            hashes=columns["hash"],
            max_pixels=content.max_pixels,
        )


def write_classes(path: Path, classes: list[ClassName]) -> None:
    """Write the class list; its order is the order of the columns everywhere."""
    # A list without unseen labels says nothing about it.
    content = [{"name": item.name, "prompt": item.prompt} | ({} if item.seen else {"seen": False}) for item in classes]
    store.write_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def read_classes(path: Path) -> list[ClassName]:
    """Read the class list.

    Raises:
        ArtifactError: missing or of another form.
    """
    try:
        classes = [ClassName(**item) for item in yaml_text.read(path)]
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: run `dvc repro format`, or `dvc pull`") from None
    except (OSError, yaml.YAMLError, TypeError):
        classes = []
    lawful = all(isinstance(c.name, str) and isinstance(c.prompt, str) and isinstance(c.seen, bool) for c in classes)
    if not classes or not lawful or len({c.name for c in classes}) < len(classes):
        raise ArtifactError(f"{path} is not a class list of this version: run `dvc repro format`")
    return classes


def write_labels(path: Path, labels: Labels, table: ImageTable, classes: list[ClassName]) -> None:
    """Write ground truth int8 [N, C]: 1 present, 0 absent, -1 unknown or left out."""
    provenance = {"table": table.fingerprint, "classes": [item.name for item in classes]}
    store.write_group(path, {"labels": labels}, provenance)


def read_labels(path: Path, table: ImageTable) -> Labels:
    """Read ground truth int8 [N, C]: 1 present, 0 absent, -1 unknown or left out.

    Raises:
        ArtifactError: missing, altered, or of another table.
    """
    return store.read_group(path, {"table": table.fingerprint}).read("labels")
