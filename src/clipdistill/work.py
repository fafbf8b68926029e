"""Artifacts in the making: large arrays, filled shard by shard by many processes, outliving any of them.

They are made in a work folder outside the pipeline's outputs, since DVC empties those before a stage runs. The unit is
a shard, one file. A shard counts as done when its marker, written after it, holds its checksum. `Work.seal` checks all
of them and puts the result in its final place. A killed run finds its finished shards again; a run with other inputs
has another fingerprint and so another folder.

A sealed artifact's shards stay in the work folder as well, by hard links, since DVC forgets an output until it has
committed it: a run that was killed between the two would compute all of it again. They go when a stage that reads the
artifact has run (`release`), which DVC lets happen after the commit, or when the same stage has sealed other ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from clipdistill import store
from clipdistill.errors import ArtifactError

# In a work folder: checksums of the files that it was made with; once it is sealed, where its artifact was put.
_MADE = "made.json"
_OF = "of"
"""Key of a marker that says whose it is: folder and shard."""

_SEALED = "sealed.json"

WORK_ROOT_VARIABLE = "CLIPDISTILL_WORK"


def work_root() -> Path:
    """Folder of unfinished work: $CLIPDISTILL_WORK, or .work in the current folder."""
    return Path(os.environ.get(WORK_ROOT_VARIABLE, ".work"))


def code_digest(parts: Sequence[str]) -> str:
    """Digest of the project's own code: a killed run is not finished by another version of it.

    Args:
        parts: modules, or folders of them, relative to the package.
    """
    package = Path(__file__).parent
    patterns = [part if part.endswith(".py") else f"{part}/*.py" for part in parts]
    files = [file for pattern in patterns for file in package.glob(pattern)]
    return store.fingerprint([store.file_sha256(file) for file in sorted(files)])


def release(out: Path) -> None:
    """Let go of what is kept of a sealed artifact, now that a stage has read it and found it whole."""
    for marker in work_root().glob(f"*/*/*/{_SEALED}"):
        if _place(marker) == str(out.resolve()):
            # What cannot be removed is in nobody's way.
            with contextlib.suppress(OSError):
                _discard(marker.parent)


def _place(marker: Path) -> str | None:
    try:
        return str(json.loads(marker.read_text(encoding="utf-8"))["out"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _discard(folder: Path) -> None:
    """Remove a work folder, first from under its name: nobody is to take half of it for work."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.removed")
    folder.rename(aside)
    shutil.rmtree(aside)


def _sums(group: Path) -> dict[str, str]:
    files = (path for path in sorted(group.rglob("*")) if path.is_file())
    return {path.relative_to(group).as_posix(): store.file_sha256(path) for path in files}


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
        specs: Mapping[str, store.ArraySpec],
        ready: Mapping[str, store.Array],
        provenance: store.Provenance,
    ) -> None:
        self.specs = dict(specs)
        self.folder = work_root() / stage / store.fingerprint(identity)[:32]
        self.store = self.folder / "store.zarr"
        self._markers = self.folder / "done"
        with store.disk_errors(self.folder):
            self._make(ready, provenance)

    def _make(self, ready: Mapping[str, store.Array], provenance: store.Provenance) -> None:
        if not self._is_whole():
            making = self.folder.with_name(f"{self.folder.name}.{os.getpid()}.partial")
            shutil.rmtree(making, ignore_errors=True)
            (making / "done").mkdir(parents=True)
            layout = self.specs | {name: store.ArraySpec(a.shape, str(a.dtype)) for name, a in ready.items()}
            group = store.create_group(making / "store.zarr", layout, provenance)
            for name, array in ready.items():
                store.require_finite(array, f"{self.store}: {name}")
                if array.size:
                    group[name][...] = array
            store.write_json(making / _MADE, _sums(making / "store.zarr"))
            if self.folder.exists() and not self._is_whole():
                # A part of it is gone or altered, which no run leaves: its shards are not to be trusted either.
                _discard(self.folder)
            try:
                making.rename(self.folder)
            except OSError:
                # Another process of the same stage was first; anything else would leave no folder.
                shutil.rmtree(making)
                if not self._is_whole():
                    raise
        self._group: store.ZarrGroup = zarr.open_group(store=str(self.store), mode="r+")

    def _is_whole(self) -> bool:
        """Whether the folder has what it was made with, by one rename; shards are another matter."""
        return self._markers.is_dir() and self._altered() is None

    def _altered(self) -> Path | None:
        """A file that is not as it was when the folder was made, if there is one."""
        record = self.folder / _MADE
        try:
            made = json.loads(record.read_text(encoding="utf-8"))
            return next(
                (self.store / name for name in made if store.file_sha256(self.store / name) != made[name]), None
            )
        except FileNotFoundError as error:
            return Path(error.filename)
        except (ValueError, TypeError):
            return record

    @property
    def shards(self) -> int:
        """Number of shards."""
        return next(iter(self.specs.values())).shards

    def pending(self) -> list[int]:
        """Shards that are not done, or whose file is not what its marker says."""
        return [shard for shard in range(self.shards) if not self._is_done(shard)]

    def unmarked(self) -> int:
        """Number of shards that nobody has marked as done: for a look while others are at work, without a checksum.

        None are where another process has sealed the artifact and let go of it.
        """
        return self.shards - len(list(self._markers.glob("*.json"))) if self._markers.is_dir() else 0

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
        # A marker vouches for its own shard of its own folder: another run's, copied here with its shard, does not.
        return (
            isinstance(sums, dict)
            and sums.get(_OF) == self._place_of(shard)
            and all(
                file.is_file() and store.file_sha256(file) == sums.get(name)
                for name, file in self._shard_files(shard).items()
            )
        )

    def _place_of(self, shard: int) -> str:
        return f"{self.folder.name}/{shard}"

    def write(self, shard: int, arrays: Mapping[str, store.Array]) -> None:
        """Write one whole shard of every array and mark it done.

        Args:
            shard: index, below `shards`.
            arrays: by name; exactly the shard's rows, without NaN or infinity.

        Raises:
            ArtifactError: the rows do not fit, a value is not finite, or the disk refuses.
        """
        with store.disk_errors(self.store):
            for name, spec in self.specs.items():
                start, stop = spec.range_of(shard)
                if arrays[name].shape != (stop - start, *spec.shape[1:]):
                    raise ArtifactError(f"{self.store}: {name} shard {shard} got shape {arrays[name].shape}")
                store.require_finite(arrays[name], f"{self.store}: {name} shard {shard}")
                self._group[name][start:stop] = arrays[name]
            sums = {name: store.file_sha256(file) for name, file in self._shard_files(shard).items()}
            store.write_json(self._marker(shard), {_OF: self._place_of(shard), **sums})

    def seal(self, out: Path) -> None:
        """Finish the artifact and put it in its place; a copy by links stays here until it is let go of.

        Raises:
            ArtifactError: a shard is missing or altered, or a value is not finite; nothing is put there.
        """
        self.finish()
        self.publish(out)

    def finish(self) -> None:
        """Check that every shard is there, whole and finite; sweep what is not part of it; write the manifest.

        Raises:
            ArtifactError: a shard or another file is missing or altered, or a value is not finite.
        """
        if missing := self.pending():
            raise ArtifactError(
                f"{self.store}: {len(missing)} of {self.shards} shards are not done (first: {missing[0]}); "
                "run the stage again, it goes on where it was"
            )
        if altered := self._altered():
            raise ArtifactError(f"{altered} is gone or was altered: run the stage again, it makes this work anew")
        with store.disk_errors(self.store):
            for stray in [*self.store.rglob("*.partial"), *self.store.rglob("*.tmp")]:
                stray.unlink()
            for name, spec in self.specs.items():
                for shard in range(spec.shards):
                    start, stop = spec.range_of(shard)
                    store.require_finite(
                        np.asarray(self._group[name][start:stop]), f"{self.store}: {name} shard {shard}"
                    )
            store.write_manifest(self.store)

    def publish(self, out: Path) -> None:
        """Put the finished artifact in its place, and keep it here as well.

        Raises:
            ArtifactError: the place cannot be written.
        """
        with store.disk_errors(out):
            store.link_into_place(self.store, out)
            store.write_json(self.folder / _SEALED, {"out": str(out.resolve())})
            self._sweep()

    def _sweep(self) -> None:
        """Remove what the same stage has sealed before, and what killed runs have left beside this folder."""
        for path in self.folder.parent.iterdir():
            mine = path.name.startswith(f"{self.folder.name}.") and path.suffix in (".partial", ".removed")
            if mine:
                shutil.rmtree(path, ignore_errors=True)
            elif path != self.folder and (path / _SEALED).is_file():
                with contextlib.suppress(OSError):
                    _discard(path)

    def discard(self) -> None:
        """Remove what is kept here."""
        _discard(self.folder)
