"""Miniature captioned images in the layouts that the readers know."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipdistill.datasets.captions.collect import collect
from clipdistill.datasets.captions.table import CaptionTable
from clipdistill.params import CaptionParams

SIZE = (6, 4)


def png(seed: int = 0, size: tuple[int, int] = SIZE) -> bytes:
    """An image whose bytes depend on the seed."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (37 * seed % 256, 91 * seed % 256, 11 * seed % 256)).save(buffer, "PNG")
    return buffer.getvalue()


def write_bytes(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_images(root: Path, names: Iterable[str]) -> None:
    for seed, name in enumerate(names):
        write_bytes(root / name, png(seed))


def write_mask(path: Path, pixels: Sequence[Sequence[int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(pixels, np.uint8)).save(path)
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_bytes(path, stream.getvalue().encode())


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(map(dict, rows))), path)
    return path


def write_coco_captions(
    root: Path,
    split: str,
    captions: Mapping[int, Sequence[object]],
    shown: Mapping[int, Sequence[int]] | None = None,
    categories: Mapping[int, str] | None = None,
) -> None:
    """Write one split: captions by image id, and where given, category ids of the annotations by image id."""
    images = [{"id": image, "file_name": f"{image:012d}.png", "width": 6} for image in captions]
    write_images(root / split, [str(image["file_name"]) for image in images])
    pairs = [{"image_id": image, "caption": text} for image, texts in captions.items() for text in texts]
    content: dict[str, Any] = {"info": {"id": "not an image"}, "images": images, "annotations": pairs}
    write_bytes(root / "annotations" / f"captions_{split}.json", json.dumps(content).encode())
    if shown is not None:
        boxes = [{"image_id": image, "category_id": category} for image, some in shown.items() for category in some]
        content = {"images": images, "annotations": boxes}
        content["categories"] = [{"id": number, "name": name} for number, name in (categories or {}).items()]
        write_bytes(root / "annotations" / f"instances_{split}.json", json.dumps(content).encode())


def write_shard(path: Path, members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            archive.addfile(header(name, size=len(content)), io.BytesIO(content))
    return path


def header(name: str, **changes: Any) -> tarfile.TarInfo:  # noqa: ANN401
    found = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(found, key, value)
    return found


def params(root: Path, **changes: Any) -> CaptionParams:  # noqa: ANN401
    return CaptionParams.model_validate({"root": str(root), "train": "train.csv", "val": "val.csv"} | changes)


def left(root: Path, **changes: Any) -> tuple[CaptionTable, dict[str, Any]]:  # noqa: ANN401
    """What collecting `train` leaves, problems left out."""
    return collect(params(root, **{"on_problem": "leave_out"} | changes), "train")


def by_id(table: CaptionTable) -> dict[str, str]:
    return dict(zip(table.ids, table.captions, strict=True))
