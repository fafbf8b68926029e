"""What test_faults.py does to stages, each in a process of its own: `python fault_scenarios.py NAME [ARGUMENT]...`.

The current folder is a finished miniature. A scenario raises an AssertionError, or prints what it has seen as JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fault_runner import (
    Attempts,
    Child,
    digests,
    fork,
    remove,
    repro,
    small_shards,
    stage,
    views_embedded,
    whole_shards,
)
from PIL import Image
from safetensors.numpy import load_file, save_file

from clipdistill import dvc_records, store
from clipdistill.students import model_folder, student_yaml
from clipdistill.training.checkpoint import Checkpoint

CACHE, WORK = Path("cache/scenes"), Path(".work")
SNIPPETS = [CACHE / split / "snippets.zarr" for split in ("train", "val")]
STUDENT = [
    CACHE / "students/cdul",
    CACHE / "train/refined/cdul.zarr",
    Path("metrics/curves/cdul"),
    Path("metrics/train/cdul.json"),
]
VIEWS = (40 + 20) * 9


def require(truth: object, what: object) -> None:
    if not truth:
        raise AssertionError(what)


def embed_killed(seed: str, processes: str) -> dict[str, Any]:
    """Kill the embedding twenty times: no finished shard is made again, and none is counted that is not whole."""
    small_shards()
    done: dict[str, int] = {}

    def check() -> None:
        now = whole_shards()
        again = [marker for marker in done if now.get(marker) != done[marker]]
        require(not again, f"made again: {again}")
        done.update(now)
        for out in SNIPPETS:
            if out.exists():
                store.verify(out)

    attempts = Attempts(stage("embed", "snippets"), SNIPPETS, int(seed), int(processes))
    clean = attempts.undisturbed()
    remove(WORK / "embed")
    before = views_embedded()
    attempts.check = check
    attempts.killed(20, share=0.2)
    require(attempts.undisturbed() == clean, "other bytes than an undisturbed run's")
    require(not list(CACHE.rglob("*.partial")), "a partial file is left")
    return {"kills": attempts.kills, "shards": len(done), "repeated": views_embedded() - before - VIEWS}


def train_killed(seed: str) -> dict[str, Any]:
    """Kill a training whose labels are refined twenty times."""

    def check() -> None:
        for file in WORK.rglob("checkpoint.pt"):
            Checkpoint.read(file.parent)
        if (STUDENT[0] / student_yaml.FILE).exists():
            model_folder.load(STUDENT[0])
        if STUDENT[1].exists():
            store.verify(STUDENT[1])

    attempts = Attempts(stage("train", "cdul"), STUDENT, int(seed), check=check)
    clean = attempts.undisturbed()
    attempts.killed(20, share=0.35)
    require(attempts.undisturbed() == clean, "other bytes than an undisturbed run's")
    return {"kills": attempts.kills, "finished": attempts.finished}


def branch_killed(seed: str, name: str, argument: str, *outs: str) -> dict[str, Any]:
    """Kill the training of another branch a few times."""

    def check() -> None:
        for file in WORK.rglob("checkpoint.pt"):
            Checkpoint.read(file.parent)

    attempts = Attempts(stage(name, argument), [Path(out) for out in outs], int(seed), check=check)
    clean = attempts.undisturbed()
    attempts.killed(5, share=0.5)
    require(attempts.undisturbed() == clean, "other bytes than an undisturbed run's")
    return {"kills": attempts.kills}


def repro_killed(seed: str) -> dict[str, Any]:
    """Kill `dvc repro` twenty times, alone or with its stage, also while it hashes and commits."""
    small_shards()
    outs = [*SNIPPETS, *(CACHE / split / "similarity.zarr" for split in ("train", "val"))]
    settings("views.snippets.grid", 2)
    for name in (("embed", "snippets"), ("similarity",)):
        Attempts(stage(*name), [], int(seed)).undisturbed()
    clean = digests(*outs)
    remove(*outs, WORK / "embed", Path(".dvc/cache/runs"))
    before, late = views_embedded(), 0

    def check() -> None:
        nonlocal late
        late += all(out.exists() for out in SNIPPETS)
        whole_shards()

    class Repro(Attempts):
        """DVC removes the outputs itself. Its stage may outlive it: the next run has to bear that, every other time."""

        def _start(self, kill_at: list[int]) -> list[Child]:
            dvc_records.mend(Path())
            return [fork(self.body, kill_at[0])]

        def _first_end(self, children: list[Child], victim: int, delay: float) -> list[int]:
            codes = super()._first_end(children, victim, delay)
            if self.kills % 2:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(children[0].pid, signal.SIGKILL)
            return codes

    attempts = Repro(repro("similarity"), outs, int(seed), check=check, changes=120, seconds=2.0)
    attempts.killed(20, share=1.0)
    require(attempts.undisturbed() == clean, "other bytes than an undisturbed run's")
    attempts.undisturbed()
    require("Running stage" not in attempts.said, f"the finished stages were run again\n{attempts.said}")
    # Other names are temporary: what a killed DVC was copying.
    for file in Path(".dvc/cache/files/md5").glob("??/[0-9a-f]*"):
        digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        require(file.parent.name + file.name.removesuffix(".dir") == digest, f"{file} is not what its name says")
    return {"kills": attempts.kills, "late": late, "repeated": views_embedded() - before - 60 * 4}


def settings(key: str, value: object) -> None:
    """Change a parameter."""
    content = yaml.safe_load(Path("params.yaml").read_text())
    *sections, name = key.split(".")
    place = content
    for section in sections:
        place = place[section]
    place[name] = value
    Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def other_grid() -> None:
    settings("views.snippets.grid", 2)


def other_weights() -> None:
    """A teacher whose projection is turned round."""
    weights = Path("cache/teachers/scenes.safetensors")
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("head.proj.weight"))
    tensors[name] = np.ascontiguousarray(-tensors[name])
    remove(weights)
    save_file(tensors, weights)
    card = yaml.safe_load(weights.with_suffix(".yaml").read_text())
    card["sha256"] = store.file_sha256(weights)
    remove(weights.with_suffix(".yaml"))
    weights.with_suffix(".yaml").write_text(yaml.safe_dump(card))


def other_images() -> None:
    """One image is drawn over, and the table made anew."""
    for split in ("train", "val"):
        table = Path("data/scenes") / split / "images.parquet"
        require(table.exists(), table)
    victim = sorted(Path("data/raw/scenes/JPEGImages").glob("*.jpg"))[3]
    size = Image.open(victim).size
    remove(victim)
    Image.new("RGB", size, (200, 10, 10)).save(victim)
    remove(Path("data/scenes"))
    Attempts(stage("format"), [], 0).undisturbed()


def changed_between() -> dict[str, Any]:
    """Kill an embedding half-way, change what it depends on, go on: nothing of the old shards is in the new array."""
    small_shards()
    work = stage("embed", "snippets")
    counts = {}
    for change in (other_grid, other_weights, other_images):
        remove(WORK / "embed")
        clean = Attempts(work, SNIPPETS, 0)
        before = clean.undisturbed()
        remove(WORK / "embed")
        half = fork(work, kill_at=clean.changes // 2)
        require(half.wait() == -signal.SIGKILL, half.said())
        old = whole_shards()
        require(0 < len(old) < 15, f"{len(old)} shards are done")
        change()
        resumed = Attempts(work, SNIPPETS, 0).undisturbed()
        require(resumed != before, f"{change.__name__} changes nothing")
        require(set(old) <= set(whole_shards()), "the shards of before are gone")
        remove(WORK / "embed")
        require(resumed == Attempts(work, SNIPPETS, 0).undisturbed(), f"{change.__name__}: old shards are in the array")
        counts[change.__name__] = len(old)
    return counts


def class_renamed() -> dict[str, Any]:
    """Kill a training after an epoch, rename a class, go on: the student is that of a run with the new name alone."""
    work = stage("train", "cdul")
    half = fork(work)
    while not list(WORK.rglob("checkpoint.pt")):
        require(half.ended() is None, half.said())
        time.sleep(0.005)
    half.kill()
    path = Path("data/scenes/classes.yaml")
    text = path.read_text()
    remove(path)
    path.write_text(text.replace("name: fish", "name: herring"))
    require(fork(work).wait() == 4, "labels of the class's old name were learned from")
    rename_in_labels("fish", "herring")
    resumed = Attempts(work, STUDENT, 0).undisturbed()
    shutil.rmtree(WORK / "train")
    return {"same": resumed == Attempts(work, STUDENT, 0).undisturbed(), "herring": "herring" in card_classes()}


def rename_in_labels(old: str, new: str) -> None:
    """Make CDUL's labels those of a data set with another name for a class."""
    path = CACHE / "train/labels/cdul.zarr"
    group = store.read_group(path)
    arrays = {name: group.read(name) for name in group.names}
    provenance = dict(group.provenance)
    text = dict(provenance["text"])
    text["classes"] = [new if name == old else name for name in text["classes"]]
    provenance["text"] = text
    provenance.pop("format_version")
    remove(path)
    store.write_group(path, arrays, provenance)


def card_classes() -> list[str]:
    return student_yaml.read(STUDENT[0]).classes


def damaged() -> dict[str, Any]:
    """Harm an artifact in ways a disk or a person does, and ask the stage that reads it."""
    train, val = SNIPPETS
    shard = train / "embedding/c/0/0"
    content = shard.read_bytes()
    attributes = (train / "zarr.json").read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    harms = {
        "truncated": (shard, content[:-3]),
        "flipped": (shard, bytes(flipped)),
        "of another run": (shard, (val / "embedding/c/0/0").read_bytes()),
        "attribute": (train / "zarr.json", attributes.replace(b'"snippets"', b'"global"', 1)),
    }
    said = {}
    for name, (file, bad) in harms.items():
        good = file.read_bytes()
        require(good != bad, f"{name} is no harm")
        remove(file)
        file.write_bytes(bad)
        said[name] = error_of(stage("similarity"))
        file.write_bytes(good)
    shutil.move(train, "kept.zarr")
    shutil.copytree(val, train)
    said["whole, of another run"] = error_of(stage("similarity"))
    shutil.rmtree(train)
    shutil.move("kept.zarr", train)
    Attempts(stage("similarity"), [], 0).undisturbed()
    return said


def error_of(body: Callable[[], object]) -> str:
    """The error of a stage that has to refuse."""
    child = fork(body)
    require(child.wait() == 4 and "Traceback" not in child.said(), child.said())
    return re.findall("error: .*", child.said())[0]


def two_at_once() -> dict[str, Any]:
    """A stage is started while it runs already: the second waits, says so, and gives the same bytes."""
    small_shards()
    work = stage("embed", "snippets")
    clean = Attempts(work, SNIPPETS, 0).undisturbed()
    remove(WORK / "embed", *SNIPPETS)
    first = fork(work)
    while not list(WORK.glob("embed/*/*/done/*.json")):
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)
    second = fork(work)
    while "waiting until" not in second.said():
        require(second.ended() is None, second.said())
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGCONT)
    codes = [first.wait(), second.wait()]
    require(codes == [0, 0], first.said() + second.said())
    return {"same": digests(*SNIPPETS) == clean, "said": second.said().splitlines()[0], "first": first.pid}


def two_repros_at_once() -> dict[str, Any]:
    """`dvc repro` while one is at work."""
    small_shards()
    settings("views.snippets.grid", 2)
    # Another test may have run it: then DVC would bring it back in place of running it.
    remove(Path(".dvc/cache/runs"))
    first = fork(repro("embed@snippets"))
    while not list(WORK.glob("embed/*/*/done/*.json")):
        require(first.ended() is None, first.said())
        time.sleep(0.002)
    os.killpg(first.pid, signal.SIGSTOP)
    second = fork(repro("embed@snippets"))
    refused = second.wait(60)
    os.killpg(first.pid, signal.SIGCONT)
    return {"refused": refused, "said": second.said(), "first": first.wait(), "pid": first.pid}


def full_disk() -> dict[str, Any]:
    """Fill a small file system at many points of a shard, a checkpoint and a metrics file; then make space.

    Runs in a mount namespace of its own, so that the file system goes when this process does.
    """
    small_shards()
    disk = Path("small").resolve()
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "small", str(disk)], check=True)
    (disk / "metrics").mkdir()
    shutil.copytree("metrics", disk / "metrics", dirs_exist_ok=True)
    clean = {
        "embed": Attempts(stage("embed", "snippets"), SNIPPETS, 0).undisturbed(),
        "train": Attempts(stage("train", "cdul"), STUDENT[:2], 0).undisturbed(),
        "evaluate": Attempts(stage("evaluate", "cdul"), [], 0).undisturbed() or digests(Path("metrics/cdul.json")),
    }
    os.environ["CLIPDISTILL_WORK"] = str(disk / "work")
    shutil.rmtree("metrics")
    Path("metrics").symlink_to(disk / "metrics")
    found: dict[str, Any] = {}
    kib = {"embed": [8, 48, 96, 160], "train": [0, 2_000], "evaluate": [0]}
    work = {"embed": ("embed", "snippets"), "train": ("train", "cdul"), "evaluate": ("evaluate", "cdul")}
    outs = {"embed": SNIPPETS, "train": STUDENT[:2], "evaluate": []}
    for name, words in work.items():
        errors = [refused(stage(*words), outs[name], disk, free) for free in kib[name]]
        require(any(errors), f"{name}: the disk was never full")
        result = Attempts(stage(*words), outs[name], 0).undisturbed() or digests(Path("metrics/cdul.json"))
        require(result == clean[name], f"{name}: other bytes than on a disk with space")
        found[name] = [error for error in errors if error]
    return found


def refused(body: Callable[[], object], outs: list[Path], disk: Path, free: int) -> str:
    """Run a stage on a disk with so few KiB left; its error, or nothing where they were enough."""
    remove(*outs)
    before = digests(Path("metrics").resolve())
    filler = disk / "filler"
    room = os.statvfs(disk)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, room.f_bavail * room.f_frsize - 1024 * free)
    child = fork(body)
    code = child.wait()
    remove(filler)
    said = child.said()
    if not code:
        return ""
    require(code == 4 and "Traceback" not in said, f"exit code {code}\n{said}")
    for out in outs:
        if out.suffix == ".zarr" and out.exists():
            store.verify(out)
    for name, digest in digests(Path("metrics").resolve()).items():
        require(before.get(name, digest) == digest or "curves" in name, f"{name} was half written")
    return re.findall("error: .*", said)[0]


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
