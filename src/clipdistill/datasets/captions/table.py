"""The caption table: what the stages of TTD read instead of raw captions.

Row i of every array of captions is row i of this table, which is sorted by id and never shuffled. An image in a shard
is read where it lies: nothing is unpacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clipdistill import store
from clipdistill.datasets import images, parquet_file
from clipdistill.datasets.captions import masks
from clipdistill.datasets.images import UnreadableImageError
from clipdistill.errors import ArtifactError

if TYPE_CHECKING:
    from PIL import Image

LIMIT = "ttd.captions.max_pixels"

_WORDS = pa.list_(pa.field("element", pa.string(), nullable=False))

_KIND = parquet_file.Kind(
    "a caption table",
    "run `dvc repro`",
    pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("bytes", pa.int64(), nullable=False),
            pa.field("hash", pa.string(), nullable=False),
            pa.field("caption", pa.string(), nullable=False),
            pa.field("tags", _WORDS, nullable=False),
            pa.field("truth", _WORDS),
            pa.field("mask", pa.string(), nullable=False),
            pa.field("mask_hash", pa.string(), nullable=False),
        ]
    ),
)


@dataclass(frozen=True, slots=True)
class CaptionTable:
    """The N captioned images of a split, sorted by id; an image may have several captions.

    Attributes:
        root: image root; `paths` and `masks` are relative to it.
        ids: unique.
        paths: POSIX paths below the root, of images or of shards.
        offsets: bytes of the files where the images begin [N].
        sizes: bytes of the images [N].
        hashes: `images.content_hash` of each image.
        captions: texts.
        tags: candidate words of each caption, in order, at least one.
        truth: those of `tags` that the image shows; None where the source does not know them.
        masks: POSIX paths below the root, of masks of what the true words are; '' where there is none.
        mask_hashes: `images.content_hash` of each mask; '' where there is none.
        max_pixels: limit under which the images were checked.
    """

    root: Path
    ids: list[str]
    paths: list[str]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    hashes: list[str]
    captions: list[str]
    tags: list[list[str]]
    truth: list[list[str]] | None
    masks: list[str]
    mask_hashes: list[str]
    max_pixels: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """Hash of ids and contents in row order; where the files lie does not count."""
        return store.fingerprint([self.ids, self.hashes, self.captions, self.tags, self.truth, self.mask_hashes])

    def open(self, row: int) -> Image.Image:
        """Read the image of a row: RGB, upright, its bytes compared with the table.

        Raises:
            UnreadableImageError: the file is gone, changed or broken.
        """
        path = self.root / self.paths[row]
        data = _read(path, int(self.offsets[row]), int(self.sizes[row]), self.hashes[row])
        return images.decode(data, str(path), self.max_pixels, LIMIT)

    def open_mask(self, row: int) -> npt.NDArray[np.bool_]:
        """Read the mask of a row: bool [H, W] as the upright image, its bytes compared with the table.

        Raises:
            UnreadableImageError: there is none, it is gone, changed or broken, or its size is not that of the image.
        """
        path = self.root / self.masks[row]
        if not self.masks[row]:
            raise UnreadableImageError(f"{self.ids[row]}: has no mask")
        data = _read(path, 0, -1, self.mask_hashes[row])
        return masks.decode(data, str(path), self.open(row).size)

    def write(self, path: Path) -> None:
        """Write the table as Parquet, and beside it where the images lie: moving them changes no byte of the table."""
        truth = [None] * len(self) if self.truth is None else self.truth
        columns: list[object] = [self.ids, self.paths, self.offsets, self.sizes, self.hashes, self.captions]
        columns += [self.tags, truth, self.masks, self.mask_hashes]
        parquet_file.write(path, _KIND.schema, columns, self.root, self.max_pixels)

    @classmethod
    def load(cls, path: Path) -> CaptionTable:
        """Read a table.

        Raises:
            ArtifactError: missing or not a table of this project.
        """
        content = parquet_file.load(path, _KIND)
        columns = content.columns
        unknown = [words is None for words in columns["truth"]]
        if any(unknown) and not all(unknown):
            raise ArtifactError(f"{path} knows the true words of some captions alone: {_KIND.cure}")
        return cls(
            root=content.root,
            ids=columns["id"],
            paths=columns["path"],
            offsets=columns["offset"],
            sizes=columns["bytes"],
            hashes=columns["hash"],
            captions=columns["caption"],
            tags=columns["tags"],
            truth=None if any(unknown) else columns["truth"],
            masks=columns["mask"],
            mask_hashes=columns["mask_hash"],
            max_pixels=content.max_pixels,
        )


def _read(path: Path, offset: int, size: int, expected_hash: str) -> bytes:
    """Read a part of a file, and notice when its bytes are no longer those that were checked."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
    except OSError as error:
        raise UnreadableImageError(f"{path}: cannot be read ({error.strerror}); `dvc repro` checks all") from None
    if images.content_hash(data) != expected_hash:
        raise UnreadableImageError(
            f"{path}: its bytes have changed since the caption table was made; run "
            "`dvc repro --force stages/ttd/dvc.yaml:tags`"
        )
    return data
