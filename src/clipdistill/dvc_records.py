"""What a DVC that was killed leaves half written, and then refuses or trips over ever after.

DVC 3 writes three kinds of its records in steps. A kill or a full disk between two of them leaves

* `.dvc/tmp/rwlock`, its list of locks, without its end: "JSON structure is corrupted";
* a folder of its run cache, `runs/KEY[:2]/KEY`, with no entry ("join() argument must be str, bytes, or os.PathLike
  object, not 'NoneType'"), or with an entry under a temporary name, which may lack its end;
* `dvc.lock` without its end.

None holds anything that is not elsewhere: the run cache has what dvc.lock says of every stage that ended, and a stage
that the run cache does not know is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from clipdistill.errors import ClipdistillError

if TYPE_CHECKING:
    from dvc.repo import Repo

_ENTRY = re.compile("[0-9a-f]{64}")


def mend(folder: Path) -> list[str]:
    """Remove the half-written records of the DVC project at a folder; no other DVC command may be at work in it.

    Returns:
        What was removed: paths relative to the folder, each with what was wrong.

    Raises:
        ClipdistillError: No DVC project there, or a DVC command holds its lock.
    """
    from dvc.exceptions import NotDvcRepoError  # noqa: PLC0415
    from dvc.lock import LockError, make_lock  # noqa: PLC0415
    from dvc.repo import Repo  # noqa: PLC0415
    from dvc.rwlock import RWLOCK_LOCK  # noqa: PLC0415

    try:
        repo = Repo(str(folder))
    except NotDvcRepoError:
        raise ClipdistillError(f"{folder.resolve()} is in no DVC project: run this where dvc.yaml is") from None
    guard = make_lock(str(Path(repo.tmp_dir) / RWLOCK_LOCK), tmp_dir=repo.tmp_dir)
    removed = []
    try:
        with repo, repo.lock, guard:
            for path, fault in _half_written(repo):
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()
                removed.append(f"{_relative(path, Path(repo.root_dir))}: {fault}")
    except LockError as error:
        raise ClipdistillError(f"a DVC command is at work here; when it has ended, try again ({error})") from error
    return removed


def _relative(path: Path, root: Path) -> Path:
    # The run cache may be outside the project: `dvc cache dir`.
    return path.relative_to(root) if path.is_relative_to(root) else path


def _half_written(repo: Repo) -> Iterator[tuple[Path, str]]:
    from dvc.rwlock import RWLOCK_FILE  # noqa: PLC0415

    locks = Path(repo.tmp_dir) / RWLOCK_FILE
    if locks.exists() and not _is_json(locks):
        yield locks, "a list of locks without its end"
    root = Path(repo.root_dir)
    for pipeline in (root / "dvc.yaml", *sorted(root.glob("stages/*/dvc.yaml"))):
        lock = pipeline.with_name("dvc.lock")
        if lock.exists() and not _is_lock_file(lock):
            yield lock, "a record of the stages without its end"
    for key in sorted(Path(repo.stage_cache.cache_dir).glob("*/*/")):
        entries = list(key.iterdir())
        left = [entry for entry in entries if not _ENTRY.fullmatch(entry.name)]
        yield from ((entry, "an entry of the run cache that was not finished") for entry in left)
        # The folder last: its entries are gone when it is removed.
        if len(left) == len(entries):
            yield key, "a run without an entry"


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _is_lock_file(path: Path) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # noqa: PLC0415
    from dvc.utils.serialize import ParseError, load_yaml  # noqa: PLC0415
    from voluptuous import Invalid  # noqa: PLC0415

    try:
        COMPILED_LOCKFILE_SCHEMA(load_yaml(str(path)))
    except (ParseError, UnicodeDecodeError, Invalid):
        return False
    return True
