"""What a DVC that was killed leaves half written, and then refuses or trips over ever after.

DVC 3 writes three kinds of its records in steps. A kill or a full disk between two of them leaves

* `.dvc/tmp/rwlock`, its list of locks, without its end: "JSON structure is corrupted";
* a folder of its run cache, `runs/KEY[:2]/KEY`, with no entry ("join() argument must be str, bytes, or os.PathLike
  object, not 'NoneType'"), or with an entry under a temporary name, which may lack its end;
* `dvc.lock` without its end.

The first two hold nothing that is not elsewhere. A `dvc.lock` may: it is kept beside, and git's last version of it put
in its place.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from clipdistill.errors import ClipdistillError

if TYPE_CHECKING:
    from dvc.repo import Repo

_ENTRY = re.compile("[0-9a-f]{64}")

# Another checkout that shares the run cache may be writing its entry: a younger one is left alone.
_SHARED_FOR = 3600


def mend(folder: Path) -> list[str]:
    """Put right the half-written records of the DVC project at a folder; no other DVC command may be at work in it.

    Returns:
        What was done: paths relative to the folder, each with what was wrong.

    Raises:
        ClipdistillError: No DVC project there, or a DVC command is at work in it.
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
    try:
        with repo, repo.lock, guard:
            return [*_locks(repo), *_lock_files(Path(repo.root_dir)), *_run_cache(repo)]
    except LockError as error:
        raise ClipdistillError(f"a DVC command is at work here; when it has ended, try again ({error})") from error


def _locks(repo: Repo) -> Iterator[str]:
    """Remove the list of locks where it has no end; refuse to go on where a living process stands in it."""
    from dvc.rwlock import RWLOCK_FILE  # noqa: PLC0415

    path = Path(repo.tmp_dir) / RWLOCK_FILE
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    try:
        json.loads(content)
    except ValueError:
        path.unlink()
        yield f"{_shown(path, repo)}: a list of locks without its end, removed"
        return
    # DVC lets go of its own lock while a stage runs, and keeps this list.
    for process in {int(number) for number in re.findall(r'"pid": (\d+)', content)}:
        if _lives(process):
            raise ClipdistillError(
                f"a DVC command is at work here, process {process}; when it has ended, try again. Where that is "
                f"another program, with the number of a DVC that was killed, remove {path}"
            )


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _lock_files(root: Path) -> Iterator[str]:
    for pipeline in (root / "dvc.yaml", *sorted(root.glob("stages/*/dvc.yaml"))):
        lock = pipeline.with_name("dvc.lock")
        if not lock.exists() or _is_lock_file(lock):
            continue
        name = lock.relative_to(root)
        if "<<<<<<<" in lock.read_text(encoding="utf-8", errors="replace"):
            yield f"{name}: a merge was not finished; left as it is: `git checkout --ours {name}` or `--theirs`"
            continue
        kept = lock.rename(lock.with_name("dvc.lock.broken"))
        command = ["git", "show", f"HEAD:./{name}"]
        shown = subprocess.run(command, cwd=root, capture_output=True, check=False)
        if shown.returncode == 0:
            lock.write_bytes(shown.stdout)
        instead = "git's last version is in its place" if shown.returncode == 0 else "git has none to put in its place"
        yield f"{name}: a record of the stages without its end, kept as {kept.name}; {instead}"


def _is_lock_file(path: Path) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # noqa: PLC0415
    from dvc.utils.serialize import ParseError, load_yaml  # noqa: PLC0415
    from voluptuous import Invalid  # noqa: PLC0415

    try:
        COMPILED_LOCKFILE_SCHEMA(load_yaml(str(path)))
    except (ParseError, UnicodeDecodeError, Invalid):
        return False
    return True


def _run_cache(repo: Repo) -> Iterator[str]:
    """Remove entries that were not finished, and folders without any."""
    folder = Path(repo.stage_cache.cache_dir)
    youngest = 0.0 if folder.is_relative_to(repo.root_dir) else _SHARED_FOR
    for key in sorted(folder.glob("*/*/")):
        try:
            if time.time() - key.stat().st_mtime < youngest:
                continue
            entries = list(key.iterdir())
            left = [entry for entry in entries if not _ENTRY.fullmatch(entry.name)]
            for entry in left:
                entry.unlink()
                yield f"{_shown(entry, repo)}: an entry of the run cache that was not finished, removed"
            if len(left) == len(entries):
                key.rmdir()
                yield f"{_shown(key, repo)}: a run without an entry, removed"
        except FileNotFoundError:
            # Another checkout that shares it was quicker.
            continue


def _shown(path: Path, repo: Repo) -> Path:
    root = Path(repo.root_dir)
    return path.relative_to(root) if path.is_relative_to(root) else path
