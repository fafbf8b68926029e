"""Artifacts in the making: large arrays, filled shard by shard by many processes, outliving any of them.

They are made in a work folder outside the pipeline's outputs, since DVC empties those before a stage runs. The unit is
a shard, one file. A shard counts as done when its marker, written after it, holds its checksum. `Work.seal` checks all
of them and moves the result to its final place. A killed run finds its finished shards again; a run with other inputs
has another fingerprint and so another folder.
"""

from __future__ import annotations

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
        self._ready = [name for name, array in ready.items() if array.size]
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
            if self.folder.exists() and not self._is_whole():
                # What a run leaves that was killed between moving its result away and removing the rest.
                self._remove()
            try:
                making.rename(self.folder)
            except OSError:
                # Another process of the same stage was first; anything else would leave no folder.
                shutil.rmtree(making)
                if not self._is_whole():
                    raise
        self._group: store.ZarrGroup = zarr.open_group(store=str(self.store), mode="r+")

    def _is_whole(self) -> bool:
        """Whether the folder has its parts, which it gets by one rename; shards are another matter."""
        known = ((self.store / name / "c").is_dir() for name in self._ready)
        return self._markers.is_dir() and (self.store / "zarr.json").is_file() and all(known)

    def _remove(self) -> None:
        """Remove the folder, first from under its name: nobody is to take half of it for work."""
        aside = self.folder.with_name(f"{self.folder.name}.{os.getpid()}.removed")
        self.folder.rename(aside)
        shutil.rmtree(aside)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return next(iter(self.specs.values())).shards

    def pending(self) -> list[int]:
        """Shards that are not done, or whose file is not what its marker says."""
        return [shard for shard in range(self.shards) if not self._is_done(shard)]

    def unmarked(self) -> int:
        """Number of shards that nobody has marked as done: for a look while others are at work, without a checksum.

        None are where another process has sealed the artifact.
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
        return all(
            file.is_file() and store.file_sha256(file) == sums.get(name)
            for name, file in self._shard_files(shard).items()
        )

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
            store.write_json(self._marker(shard), sums)

    def seal(self, out: Path) -> None:
        """Finish the artifact and move it to `out`.

        Raises:
            ArtifactError: a shard is missing or altered, or a value is not finite; nothing is moved.
        """
        self.finish()
        self.move(out)

    def finish(self) -> None:
        """Check that every shard is there, whole and finite; sweep what is not part of it; write the manifest.

        Raises:
            ArtifactError: a shard is missing or altered, or a value is not finite.
        """
        if missing := self.pending():
            raise ArtifactError(
                f"{self.store}: {len(missing)} of {self.shards} shards are not done (first: {missing[0]}); "
                "run the stage again, it goes on where it was"
            )
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

    def move(self, out: Path) -> None:
        """Move the finished artifact to `out`.

        Raises:
            ArtifactError: the place cannot be written.
        """
        with store.disk_errors(out):
            store.move_into_place(self.store, out)
            self._remove()
