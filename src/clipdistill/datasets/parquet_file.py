"""A table of images as two files: Parquet, and beside it YAML that says where the images lie and what its bytes are.

Moving the images changes the YAML alone. Parquet has no checksum of its own that readers look at; the YAML has one.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from clipdistill import store, yaml_text
from clipdistill.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of table.

    Attributes:
        name: what an error calls it, with its article.
        cure: what to do where it is missing or damaged.
        schema: its columns.
    """

    name: str
    cure: str
    schema: pa.Schema


@dataclass(frozen=True, slots=True)
class Content:
    """What the two files say.

    Attributes:
        columns: by name; numbers as an array, all else as a list.
        root: image root.
        max_pixels: limit under which the images were checked.
    """

    columns: dict[str, Any]
    root: Path
    max_pixels: int


def write(path: Path, schema: pa.Schema, columns: Iterable[object], root: Path, max_pixels: int) -> None:
    """Write a table and the file beside it.

    Args:
        path: of the Parquet file; the other has the suffix .yaml.
        schema: names and types of the columns.
        columns: values of each, in that order.
        root: image root.
        max_pixels: limit under which the images were checked.

    Raises:
        ArtifactError: the files cannot be written.
    """
    arrays = [pa.array(column, type=kind.type) for column, kind in zip(columns, schema, strict=True)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), buffer)
    content = buffer.getvalue()
    store.write_atomically(path, content)
    sha256 = hashlib.sha256(content).hexdigest()
    place = {"image_root": root.as_posix(), "max_pixels": max_pixels, "sha256": sha256}
    store.write_atomically(path.with_suffix(".yaml"), yaml.safe_dump(place).encode())


def load(path: Path, kind: Kind) -> Content:
    """Read a table and the file beside it.

    Raises:
        ArtifactError: missing, altered, or not of this kind.
    """
    try:
        content = path.read_bytes()
        table = pq.read_table(io.BytesIO(content))
        columns = {field.name: _values(table.column(field.name)) for field in kind.schema}
        place = yaml_text.read(path.with_suffix(".yaml"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename or path} is missing: {kind.cure}, or `dvc pull`") from None
    # Arrow's errors of damaged files are not all its own.
    except (pa.ArrowException, OSError, KeyError, ValueError, MemoryError, yaml.YAMLError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): {kind.cure}") from None
    if table.schema.remove_metadata() != kind.schema or not _is_place(place):
        raise ArtifactError(f"{path} is not {kind.name} of this version: {kind.cure}")
    if hashlib.sha256(content).hexdigest() != place["sha256"]:
        raise ArtifactError(
            f"{path} was altered: its checksum is not that of {path.with_suffix('.yaml').name}: "
            f"`dvc checkout` brings it back, or {kind.cure.removeprefix('run ')}"
        )
    return Content(columns, Path(place["image_root"]), place["max_pixels"])


def _values(column: pa.ChunkedArray) -> Any:  # noqa: ANN401 - an array or a list
    is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    return column.to_numpy() if is_number else column.to_pylist()


def _is_place(content: Any) -> bool:  # noqa: ANN401 - whatever the file beside a table holds
    known = isinstance(content, dict) and set(content) == {"image_root", "max_pixels", "sha256"}
    texts = known and all(isinstance(content[key], str) for key in ("image_root", "sha256"))
    return texts and type(content["max_pixels"]) is int
