"""Zarr artifacts: written whole or not at all, and checked byte by byte when they are read.

An artifact is a Zarr v3 group in a folder, with a manifest beside the metadata that lists every file's size and
SHA-256. The manifest is written last; a reader refuses a folder without one, or one that differs from it, and so a
missing, truncated or altered shard never reads as silence (Zarr itself would return the fill value).

Large arrays, made by many processes over hours, come from `clipdistill.work`.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from clipdistill import layout
from clipdistill.errors import ArtifactError
from clipdistill.layout import Blocks

FORMAT_VERSION = 1
_CURE = "pull it again with `dvc pull`, or remove the folder and run `dvc repro`"
MANIFEST = "manifest.json"

# Chosen by measurement (docs/dependencies.md): bit-shuffled zstd is the smallest, and no slower than the disk.
# The checksum stands after it in the chain, so that it guards the stored bytes.
_COMPRESSORS = (BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec())

Array = npt.NDArray[Any]
ArraySpec = layout.ArraySpec
ZarrGroup: TypeAlias = Any
"""zarr.Group, whose types leave open what stands under a name."""
ZarrArray: TypeAlias = Any
Provenance = Mapping[str, Any]


def fingerprint(content: Any) -> str:  # noqa: ANN401 - any JSON value
    """Hash a JSON value: equal content gives equal digests, whatever the order of its keys.

    Args:
        content: what `json.dumps` takes.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash a file's bytes; returns 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it: no reader meets half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_partial(path)
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise ArtifactError(
            f"{path}: cannot be written ({error.strerror}); free space or permission, then again"
        ) from error


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write JSON for people and machines: sorted as given, indented, no NaN, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def create_group(path: Path, specs: Mapping[str, ArraySpec], provenance: Provenance) -> ZarrGroup:
    """Make an empty group, without a manifest: whoever fills it writes that last."""
    attributes = {"format_version": FORMAT_VERSION, **provenance}
    group: ZarrGroup = zarr.create_group(store=str(path), zarr_format=3, attributes=json.loads(json.dumps(attributes)))
    for name, spec in specs.items():
        dtype = np.dtype(spec.dtype)
        inner = spec.chunk_rows
        group.create_array(
            name,
            shape=spec.shape,
            dtype=dtype,
            chunks=(inner, *(max(1, n) for n in spec.shape[1:])),
            shards=(-(-spec.rows // inner) * inner, *(max(1, n) for n in spec.shape[1:])),
            compressors=_COMPRESSORS,
            # Zarr reads a missing file as the fill value: with NaN the silence can be heard.
            fill_value=np.nan if dtype.kind == "f" else None,
            config={"write_empty_chunks": True},
        )
    return group


def write_group(path: Path, arrays: Mapping[str, Array | Blocks], provenance: Provenance) -> None:
    """Write an artifact in one go: complete under its final name, or absent.

    Args:
        path: folder to make; one that is there is replaced.
        arrays: by name; row i of each is item i. `Blocks` are for those too large for memory: a file of one is held at
            a time.
        provenance: JSON values that say what it was made from (no times, hosts or absolute paths).

    Raises:
        ArtifactError: the disk is full or the place cannot be written, a float array holds NaN or inf, or blocks do
            not add up to their array.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with disk_errors(path):
            sweep_partial(path)
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(parents=True, exist_ok=True)
            group = create_group(partial, {name: _spec_of(array) for name, array in arrays.items()}, provenance)
        for name, array in arrays.items():
            _write_array(group[name], array, f"{path}: {name}")
        with disk_errors(path):
            write_manifest(partial)
            move_into_place(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _spec_of(array: Array | Blocks) -> ArraySpec:
    return array.spec if isinstance(array, Blocks) else ArraySpec(array.shape, str(array.dtype))


def _write_array(target: ZarrArray, array: Array | Blocks, what: str) -> None:
    """Write one array file by file; what reading or computing its blocks raises is no fault of this artifact's disk."""
    start = 0
    for rows in array.files() if isinstance(array, Blocks) else [array]:
        require_finite(rows, what, start)
        with disk_errors(what):
            if rows.size:
                target[start : start + len(rows)] = rows
        start += len(rows)


@contextlib.contextmanager
def disk_errors(what: Path | str) -> Iterator[None]:
    """Turn what the disk refuses within a `with` block into an error that names the artifact."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{what}: cannot be written ({error}); free space or permission, then run again") from error


def require_finite(array: Array, what: str, start: int = 0) -> None:
    """Refuse NaN and infinity, naming the first row that holds one; the array's own first row has number `start`."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0, 0])
        raise ArtifactError(f"{what} holds NaN or infinity, first in row {start + row}: nothing was written")


def move_into_place(source: Path, target: Path) -> None:
    """Put a finished folder in place: a rename on one file system, else a copy under a temporary name first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    try:
        source.rename(target)
    except OSError:
        near = target.with_name(f"{target.name}.{os.getpid()}.partial")
        shutil.copytree(source, near)
        near.rename(target)
        shutil.rmtree(source)


def link_into_place(source: Path, target: Path) -> None:
    """Put a finished folder in place and leave the source where it is: by hard links, or copies where there are none.

    Nobody may write into files of either in place; what replaces them whole does no harm.
    """
    near = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        sweep_partial(target)
        near.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, near, copy_function=_link)
        move_into_place(near, target)
    finally:
        shutil.rmtree(near, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without hard links; what else is wrong, the copy finds as well.
        shutil.copy2(source, target)


def sweep_partial(path: Path) -> None:
    """Remove what killed processes of this machine have left beside a file or folder that they were writing."""
    for stray in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        number = stray.name.removeprefix(f"{path.name}.").removesuffix(".partial")
        if number.isdecimal() and not _is_alive(int(number)):
            if stray.is_dir():
                shutil.rmtree(stray, ignore_errors=True)
            else:
                stray.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _files(path: Path) -> dict[str, Path]:
    return {
        file.relative_to(path).as_posix(): file
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def _sums(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of every file, in threads: hashing takes as long as reading, and leaves Python's lock to others."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(files, pool.map(file_sha256, files.values()), strict=True))


def write_manifest(path: Path) -> None:
    """List every file of a finished artifact with its size and SHA-256."""
    files = _files(path)
    entries = {name: {"bytes": files[name].stat().st_size, "sha256": digest} for name, digest in _sums(files).items()}
    write_json(path / MANIFEST, {"format_version": FORMAT_VERSION, "files": entries})


def verify(path: Path) -> None:
    """Compare every file of an artifact with its manifest.

    Raises:
        ArtifactError: the artifact or its manifest is missing, or a file is missing, foreign, truncated or altered;
            the text names the file.
    """
    entries, files = _entries(path), _files(path)
    for name in sorted(set(entries) | set(files)):
        if name not in files:
            raise ArtifactError(f"{path / name} is missing: {_CURE}")
        if name not in entries:
            raise ArtifactError(f"{path / name} does not belong to this artifact: {_CURE}")
        if files[name].stat().st_size != entries[name][0]:
            raise ArtifactError(
                f"{path / name} has {files[name].stat().st_size} bytes, {entries[name][0]} were written: {_CURE}"
            )
    for name, digest in _sums(files).items():
        if digest != entries[name][1]:
            raise ArtifactError(f"{path / name} was altered since it was written (checksum differs): {_CURE}")


def _entries(path: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file of an artifact, as its manifest has them."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        state = "has no manifest, so it was never finished" if path.exists() else "is missing"
        raise ArtifactError(f"{path} {state}: {_CURE}") from None
    except OSError as error:
        raise ArtifactError(f"{path / MANIFEST} cannot be read ({error.strerror}): {_CURE}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ArtifactError(f"{path / MANIFEST} is damaged: {_CURE}") from None


@contextlib.contextmanager
def _zarr_errors(path: Path) -> Iterator[None]:
    """Turn what Zarr raises within a `with` block into an error that names the place.

    Only a disk that fails, or a manifest that vouches for files that are no Zarr, leads to one: what Zarr's readers of
    metadata and its codecs then raise is no short list.
    """
    try:
        yield
    except Exception as error:
        raise ArtifactError(f"{path} cannot be read ({error}): {_CURE}") from error


@dataclass(frozen=True, slots=True)
class Group:
    """A verified artifact, open for reading.

    Attributes:
        path: its folder.
        provenance: what it was made from.
    """

    path: Path
    provenance: dict[str, Any]
    _arrays: ZarrGroup = field(repr=False)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array."""
        return tuple(self._array(name).shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Read rows [start, stop) of an array into memory."""
        array = self._array(name)
        with _zarr_errors(self.path / name):
            return np.asarray(array[start:stop])

    @property
    def names(self) -> list[str]:
        """Names of its arrays, sorted."""
        return sorted(file.parent.name for file in self.path.glob("*/zarr.json"))

    def layout(self) -> dict[str, str]:
        """Type and shape of every array, for people."""
        return {name: f"{self._array(name).dtype} {list(self.shape(name))}" for name in self.names}

    def _array(self, name: str) -> ZarrArray:
        if name not in self.names:
            raise ArtifactError(f"{self.path} has no array {name!r}; it has {', '.join(self.names)}")
        with _zarr_errors(self.path / name):
            return self._arrays[name]


def read_group(path: Path, expect: Provenance | None = None) -> Group:
    """Open an artifact after checking every byte of it.

    Args:
        path: its folder.
        expect: provenance that the caller relies on; keys that it does not name are not compared.

    Returns:
        The artifact.

    Raises:
        ArtifactError: it is missing, incomplete or altered, of another format version, or made from something else
            than expected; the text names both.
    """
    verify(path)
    with _zarr_errors(path):
        # Version 2 of the format can hold pickles.
        group = zarr.open_group(store=str(path), mode="r", zarr_format=3)
        provenance = dict(group.attrs)
    for key, wanted in {"format_version": FORMAT_VERSION, **(expect or {})}.items():
        if provenance.get(key) != wanted:
            raise ArtifactError(
                f"{path} was made with {key} = {provenance.get(key)!r}, but {wanted!r} is expected here: "
                "run `dvc repro` to make it anew"
            )
    return Group(path, provenance, group)
