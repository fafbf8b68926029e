"""Zarr artifacts: written whole or not at all, and checked byte by byte when they are read.

An artifact is a Zarr v3 group in a folder, with a manifest beside the metadata that lists every file's size and
SHA-256. The manifest is written last; a reader refuses a folder without one, or one that differs from it, and so a
missing, truncated or altered shard never reads as silence (Zarr itself would return the fill value).

Large arrays are made by many processes in a work folder outside the pipeline's outputs (`Work`): the unit is a shard,
one file. A shard counts as done when its marker, written after it, holds its checksum. `Work.seal` checks all of
them and moves the result to its final place. A killed run finds its finished shards again; a run with other inputs has
another fingerprint and so another folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from clipdistill.errors import ArtifactError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WORK_ROOT_VARIABLE = "CLIPDISTILL_WORK"

# Chosen by measurement (docs/dependencies.md): bit-shuffled zstd is the smallest, and no slower than the disk.
# The checksum stands after it in the chain, so that it guards the stored bytes.
_COMPRESSORS = (BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec())

Array = npt.NDArray[Any]
ZarrGroup: TypeAlias = Any
"""zarr.Group, whose types leave open what stands under a name."""
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ArtifactError(
            f"{path}: cannot be written ({error.strerror}); free space or permission, then again"
        ) from error


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write JSON for people and machines: sorted as given, indented, no NaN, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Layout of one array.

    Attributes:
        shape: whole shape; the first axis is the one that is split.
        dtype: NumPy type name.
        shard_rows: rows a file; None: one file.
    """

    shape: tuple[int, ...]
    dtype: str
    shard_rows: int | None = None

    @property
    def rows(self) -> int:
        """Rows a file, at least 1."""
        return max(1, self.shard_rows or self.shape[0])

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.shape[0] // self.rows)

    def range_of(self, shard: int) -> tuple[int, int]:
        """First row and the row after the last of a shard."""
        return shard * self.rows, min((shard + 1) * self.rows, self.shape[0])


def _create(path: Path, specs: Mapping[str, ArraySpec], provenance: Provenance) -> ZarrGroup:
    attributes = {"format_version": FORMAT_VERSION, **provenance}
    group: ZarrGroup = zarr.create_group(store=str(path), zarr_format=3, attributes=json.loads(json.dumps(attributes)))
    for name, spec in specs.items():
        dtype = np.dtype(spec.dtype)
        inner = _inner_rows(spec)
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


def _inner_rows(spec: ArraySpec) -> int:
    """Rows a chunk inside a shard, of 256 KiB at most: a power of two, or a divisor of the shard's rows."""
    row_bytes = max(1, int(np.prod(spec.shape[1:], dtype=np.int64)) * np.dtype(spec.dtype).itemsize)
    limit = max(1, min(262_144 // row_bytes, spec.rows))
    if spec.shard_rows is None:
        return 1 << (limit.bit_length() - 1)
    return next(rows for rows in range(limit, 0, -1) if spec.rows % rows == 0)


def write_group(path: Path, arrays: Mapping[str, Array], provenance: Provenance) -> None:
    """Write a small artifact in one go: complete under its final name, or absent.

    Args:
        path: folder to make; one that is there is replaced.
        arrays: by name; row i of each is item i.
        provenance: JSON values that say what it was made from (no times, hosts or absolute paths).

    Raises:
        ArtifactError: the disk is full or the place cannot be written, or a float array holds NaN or inf.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with _disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            specs = {name: ArraySpec(array.shape, str(array.dtype)) for name, array in arrays.items()}
            group = _create(partial, specs, provenance)
            for name, array in arrays.items():
                _require_finite(array, f"{path}: {name}")
                if array.size:
                    group[name][...] = array
            _write_manifest(partial)
            _move(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error}); free space or permission, then run again") from error


def _require_finite(array: Array, what: str) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0, 0])
        raise ArtifactError(f"{what} holds NaN or infinity, first in row {row}: nothing was written")


def _move(source: Path, target: Path) -> None:
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


def _files(path: Path) -> dict[str, Path]:
    return {
        file.relative_to(path).as_posix(): file
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def _write_manifest(path: Path) -> None:
    entries = {name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for name, file in _files(path).items()}
    write_json(path / MANIFEST, {"format_version": FORMAT_VERSION, "files": entries})


def verify(path: Path) -> None:
    """Compare every file of an artifact with its manifest.

    Raises:
        ArtifactError: the artifact or its manifest is missing, or a file is missing, foreign, truncated or altered;
            the text names the file.
    """
    cure = "pull it again with `dvc pull`, or remove the folder and run `dvc repro`"
    try:
        entries = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        state = "has no manifest, so it was never finished" if path.exists() else "is missing"
        raise ArtifactError(f"{path} {state}: {cure}") from None
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{path / MANIFEST} is damaged: {cure}") from None
    files = _files(path)
    for name in sorted(set(entries) | set(files)):
        if name not in files:
            raise ArtifactError(f"{path / name} is missing: {cure}")
        if name not in entries:
            raise ArtifactError(f"{path / name} does not belong to this artifact: {cure}")
        if files[name].stat().st_size != entries[name]["bytes"]:
            raise ArtifactError(
                f"{path / name} has {files[name].stat().st_size} bytes, {entries[name]['bytes']} were written: {cure}"
            )
        if file_sha256(files[name]) != entries[name]["sha256"]:
            raise ArtifactError(f"{path / name} was altered since it was written (checksum differs): {cure}")


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
        return np.asarray(self._array(name)[start:stop])

    @property
    def names(self) -> list[str]:
        """Names of its arrays, sorted."""
        return sorted(file.parent.name for file in self.path.glob("*/zarr.json"))

    def layout(self) -> dict[str, str]:
        """Type and shape of every array, for people."""
        return {name: f"{self._array(name).dtype} {list(self.shape(name))}" for name in self.names}

    def _array(self, name: str) -> Any:  # noqa: ANN401 - zarr ships no usable types
        if name not in self._arrays:
            raise ArtifactError(f"{self.path} has no array {name!r}; it has {', '.join(self.names)}")
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
    group = zarr.open_group(store=str(path), mode="r")
    provenance = dict(group.attrs)
    for key, wanted in {"format_version": FORMAT_VERSION, **(expect or {})}.items():
        if provenance.get(key) != wanted:
            raise ArtifactError(
                f"{path} was made with {key} = {provenance.get(key)!r}, but {wanted!r} is expected here: "
                "run `dvc repro` to make it anew"
            )
    return Group(path, provenance, group)


def work_root() -> Path:
    """Folder of unfinished work: $CLIPDISTILL_WORK, or .work in the current folder."""
    return Path(os.environ.get(WORK_ROOT_VARIABLE, ".work"))


class Work:
    """An artifact in the making, shared by many processes and outliving them.

    Args:
        stage: name of the stage and its target, the folder's first level.
        identity: everything that the bytes depend on (JSON); another identity is another folder.
        specs: arrays that are filled shard by shard, all with the same number of shards.
        ready: arrays that are known beforehand, written when the folder is made.
        provenance: attributes of the artifact.
    """

    def __init__(
        self,
        stage: str,
        identity: Any,  # noqa: ANN401 - any JSON value
        specs: Mapping[str, ArraySpec],
        ready: Mapping[str, Array],
        provenance: Provenance,
    ) -> None:
        self.specs = dict(specs)
        self.folder = work_root() / stage / fingerprint(identity)[:32]
        self.store = self.folder / "store.zarr"
        self._markers = self.folder / "done"
        with _disk_errors(self.folder):
            self._make(ready, provenance)

    def _make(self, ready: Mapping[str, Array], provenance: Provenance) -> None:
        if not (self._markers.is_dir() and self.store.is_dir()):
            shutil.rmtree(self.folder, ignore_errors=True)
            making = self.folder.with_name(f"{self.folder.name}.{os.getpid()}.partial")
            shutil.rmtree(making, ignore_errors=True)
            (making / "done").mkdir(parents=True)
            layout = self.specs | {name: ArraySpec(a.shape, str(a.dtype)) for name, a in ready.items()}
            group = _create(making / "store.zarr", layout, provenance)
            for name, array in ready.items():
                _require_finite(array, f"{self.store}: {name}")
                if array.size:
                    group[name][...] = array
            making.rename(self.folder)
        self._group: ZarrGroup = zarr.open_group(store=str(self.store), mode="r+")

    @property
    def shards(self) -> int:
        """Number of shards."""
        return next(iter(self.specs.values())).shards

    def pending(self) -> list[int]:
        """Shards that are not done, or whose file is not what its marker says."""
        return [shard for shard in range(self.shards) if not self._is_done(shard)]

    def _shard_files(self, shard: int) -> dict[str, Path]:
        names = {
            name: f"{name}/c/{'/'.join([str(shard)] + ['0'] * (len(spec.shape) - 1))}"
            for name, spec in self.specs.items()
        }
        return {name: self.store / name for name in names.values()}

    def _marker(self, shard: int) -> Path:
        return self._markers / f"{shard:06d}.json"

    def _is_done(self, shard: int) -> bool:
        try:
            sums = json.loads(self._marker(shard).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        return all(
            file.is_file() and file_sha256(file) == sums.get(name) for name, file in self._shard_files(shard).items()
        )

    def write(self, shard: int, arrays: Mapping[str, Array]) -> None:
        """Write one whole shard of every array and mark it done.

        Args:
            shard: index, below `shards`.
            arrays: by name; exactly the shard's rows, without NaN or infinity.

        Raises:
            ArtifactError: the rows do not fit, a value is not finite, or the disk refuses.
        """
        with _disk_errors(self.store):
            for name, spec in self.specs.items():
                start, stop = spec.range_of(shard)
                if arrays[name].shape != (stop - start, *spec.shape[1:]):
                    raise ArtifactError(f"{self.store}: {name} shard {shard} got shape {arrays[name].shape}")
                _require_finite(arrays[name], f"{self.store}: {name} shard {shard}")
                self._group[name][start:stop] = arrays[name]
            sums = {name: file_sha256(file) for name, file in self._shard_files(shard).items()}
            write_json(self._marker(shard), sums)

    def seal(self, out: Path) -> None:
        """Check that every shard is there, whole and finite; sweep what is not part of it; move it to `out`.

        Raises:
            ArtifactError: a shard is missing or altered, or a value is not finite; nothing is moved.
        """
        if missing := self.pending():
            raise ArtifactError(
                f"{self.store}: {len(missing)} of {self.shards} shards are not done (first: {missing[0]}); "
                "run the stage again, it goes on where it was"
            )
        with _disk_errors(out):
            for stray in [*self.store.rglob("*.partial"), *self.store.rglob("*.tmp")]:
                stray.unlink()
            for name, spec in self.specs.items():
                for shard in range(spec.shards):
                    start, stop = spec.range_of(shard)
                    _require_finite(np.asarray(self._group[name][start:stop]), f"{self.store}: {name} shard {shard}")
            _write_manifest(self.store)
            _move(self.store, out)
            shutil.rmtree(self.folder)
