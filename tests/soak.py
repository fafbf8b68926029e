"""A soak: the whole pipeline on the miniature of its tests, killed and harmed at random moments for as long as wanted.

    python tests/soak.py --minutes 60 --seed 0

A clean run comes first. Then fresh projects run `dvc repro` under faults until each is finished, and every file of each
must equal the clean one's. A `dvc repro` that nothing harmed has to end well by itself: nobody removes a folder or a
lock; after a harmed one `clipdistill mend` is run, as docs/robustness.md says. The last project is finished when the
time is over. No test: pytest does not collect this file.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "pipeline"))
from conftest import Project, make_project

from clipdistill import dvc_records

# Seconds from the start of `dvc repro` to a fault: often in a stage's beginning, sometimes several stages later.
_SHORTEST, _MEAN = 1.0, 14.0
_DISK = "1500m"


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file of a finished project: all outputs but the report, which holds times."""
    found = {}
    for top in ("data", "cache", "metrics"):
        for file in sorted((folder / top).rglob("*")):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and file.name != ".gitignore" and name != "metrics/report.html":
                found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def descendants(process: int) -> list[int]:
    """Processes that a process started, directly or not."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.parent.name))
    found, waiting = [], [process]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def send(number: int, processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


class Run:
    """A `dvc repro` at work."""

    def __init__(self, project: Project, processes: int, log: Path) -> None:
        self.project, self.processes, self.log = project, processes, log
        environment = project.environment | {"CLIPDISTILL_PROCESSES": str(processes)}
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                ["dvc", "repro"], cwd=project.folder, env=environment, stdout=stream, stderr=stream, text=True
            )

    def stage(self) -> str:
        """The stage that it is at."""
        found = re.findall(r"^Running stage '(?:.*:)?([^']+)':", self.log.read_text(), flags=re.MULTILINE)
        return str(found[-1]) if found else "the beginning"

    def ended_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


class Soak:
    """Faults and what came of them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.faults: Counter[str] = Counter()
        self.stages: Counter[str] = Counter()
        self.tracebacks = 0
        self.mended: Counter[str] = Counter()

    # Each fault gets a run at work; it returns when the harm is done and the run has ended.

    def kill_everything(self, run: Run) -> None:
        send(signal.SIGKILL, [run.process.pid, *descendants(run.process.pid)])

    def kill_dvc_alone(self, run: Run) -> None:
        """The stage goes on without it, and the next run meets it."""
        run.process.kill()

    def kill_a_process_of_the_stage(self, run: Run) -> None:
        if others := descendants(run.process.pid):
            send(signal.SIGKILL, [self.random.choice(others)])

    def terminate(self, run: Run) -> None:
        """As a batch system does."""
        send(signal.SIGTERM, [run.process.pid, *descendants(run.process.pid)])

    def kill_and_damage(self, run: Run) -> None:
        """Kill, then truncate a file of unfinished embeddings or flip a bit of it."""
        self.kill_everything(run)
        run.process.wait()
        files = [file for file in (run.project.folder / ".work" / "embed").rglob("*") if file.is_file()]
        if not files:
            return
        victim = self.random.choice(files)
        content = bytearray(victim.read_bytes())
        if self.random.random() < 0.5 or not content:
            content = content[: len(content) // 2]
        else:
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        # A file of its own: DVC's cache may have the old one as well, and it is not what this harms.
        victim.unlink()
        victim.write_bytes(content)

    def fill_the_disk(self, run: Run) -> None:
        filler = run.project.folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as stream:
            while True:
                stream.write(bytes(1 << 20))
                stream.flush()
        run.ended_within(30)
        if run.process.poll() is None:
            self.kill_everything(run)
            run.process.wait()
        filler.unlink()

    def run_another(self, run: Run) -> None:
        """A second run at once; whether it refuses or waits, it is killed in the end, and the first as well."""
        other = Run(run.project, run.processes, run.log.with_suffix(".second"))
        other.ended_within(5)
        self.kill_everything(other)
        other.process.wait()
        self.kill_everything(run)

    def harm(self, run: Run, on_small_disk: bool) -> None:
        choices: list[Callable[[Run], None]] = [self.kill_everything] * 3
        choices += [self.kill_dvc_alone, self.kill_a_process_of_the_stage, self.terminate, self.kill_and_damage]
        choices += [self.run_another, self.fill_the_disk] if on_small_disk else [self.run_another]
        fault = self.random.choice(choices)
        self.faults[fault.__name__] += 1
        self.stages[run.stage()] += 1
        print(f"  {fault.__name__} at {run.stage()}", flush=True)
        fault(run)
        run.process.wait()
        self.tracebacks += "Traceback" in run.log.read_text()

    def mend(self, project: Project) -> None:
        """Do what a person does after a run that was killed."""
        removed = dvc_records.mend(project.folder)
        self.mended.update(line.rpartition(": ")[2].removesuffix(", removed") for line in removed)
        for line in removed:
            print(f"  mended {line}", flush=True)

    def finish(self, project: Project, processes: int, end: float, on_small_disk: bool) -> None:
        """Run a project under faults until it is finished; after `end` without any."""
        for turn in range(10_000):
            self.mend(project)
            run = Run(project, processes, self.folder / f"run-{turn}.log")
            delay = _SHORTEST + self.random.expovariate(1 / _MEAN)
            if time.monotonic() < end and not run.ended_within(delay):
                self.harm(run, on_small_disk)
            elif run.process.wait():
                said = run.log.read_text()
                kept = tempfile.mkdtemp(prefix="soak-failed-")
                shutil.copytree(project.folder, kept, symlinks=True, dirs_exist_ok=True)
                sys.exit(f"a run that nothing harmed ended with {run.process.returncode}; {kept} is as it was:\n{said}")
            else:
                return


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of limited size at a folder, where this may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "soak", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def compare(clean: dict[str, str], project: Project) -> None:
    found = contents(project.folder)
    if differing := sorted(name for name in clean.keys() | found.keys() if clean.get(name) != found.get(name)):
        sys.exit(f"{len(differing)} files differ from the clean run's:\n" + "\n".join(differing))


def clean_run(fresh: Project, folder: Path, processes: int) -> dict[str, str]:
    """What a project of these processes is when nothing disturbs it."""
    shutil.copytree(fresh.folder, folder, symlinks=True)
    project = Project(folder)
    project.run("dvc", "repro", CLIPDISTILL_PROCESSES=str(processes))
    found = contents(folder)
    shutil.rmtree(folder)
    return found


def soak_projects(soak: Soak, minutes: float, clean: dict[int, dict[str, str]]) -> list[int]:
    """Finish projects under faults until the time is over; returns the number of processes of each.

    One process and two take turns: the students of two differ from those of one in their last bits. `clean` has what
    each is to be, and is filled where it does not; the time counts from there.
    """
    begin = time.monotonic()
    end, finished = begin + 60 * minutes, []
    fresh = make_project(soak.folder / "fresh")
    with small_disk(soak.folder / "disk") as on_small_disk:
        while time.monotonic() < end:
            processes = 1 + len(finished) % 2
            if processes not in clean:
                clean_begin = time.monotonic()
                clean[processes] = clean_run(fresh, soak.folder / "clean", processes)
                end += time.monotonic() - clean_begin
                print(f"clean run of {processes}: {len(clean[processes])} files", flush=True)
            project = Project(soak.folder / "disk" / "project")
            shutil.copytree(fresh.folder, project.folder, symlinks=True)
            soak.finish(project, processes, end, on_small_disk)
            compare(clean[processes], project)
            finished.append(processes)
            print(f"project {len(finished)} is equal after {time.monotonic() - begin:.0f} s", flush=True)
            shutil.rmtree(project.folder)
    return finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
        soak = Soak(options.seed, Path(name))
        finished = soak_projects(soak, options.minutes, {})
    print(f"\n{(time.monotonic() - begin) / 60:.0f} minutes, seed {options.seed}")
    print(
        f"finished: {finished.count(1)} projects in one process, {finished.count(2)} in two, each equal to a clean run"
    )
    print(f"{soak.faults.total()} faults: {', '.join(f'{key} {n}' for key, n in soak.faults.most_common())}")
    print(f"hit: {', '.join(f'{key} {n}' for key, n in soak.stages.most_common())}")
    print(f"mended of DVC's records: {', '.join(f'{n} times {key}' for key, n in soak.mended.items()) or 'nothing'}")
    print(f"runs that showed a traceback: {soak.tracebacks}")


if __name__ == "__main__":
    main()
