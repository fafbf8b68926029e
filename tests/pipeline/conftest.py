"""A project of its own for the pipeline tests: this checkout's files, a miniature of the embedded default, real DVC."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COPIED = [
    "stages",
    "src",
    "cache/adapters/none",
    "cache/teachers/open_clip.yaml",
    "cache/teachers/file.yaml",
    "params.yaml",
    "dvc.yaml",
]
COPIED += [".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"]

MINIATURE: dict[str, Any] = {
    "scenes": {"train_images": 40, "val_images": 20, "captions": 128, "image_size": 96},
    "pretrain_clip": {"epochs": 1, "batch_size": 64},
    "train": {
        # A small network: what it weighs is written at every epoch, hashed, copied and pushed.
        "student": {"backbone": "shufflenet_v2_x0_5", "image_size": 32, "output_stride": 32},
        "recipe": {"epochs": 2, "batch_size": 20, "precision": "fp32"},
        "cdul": {"warmup": 0, "step": 1.0, "sigma": 1.0},
    },
    "tagged_scenes": {"train_images": 24, "val_images": 8},
    "ttd": {
        "image_size": 64,
        "recipe": {"epochs": 1, "batch_size": 6, "precision": "fp32"},
        "segment": {"image_size": 64, "window": 64, "scales": [1.0], "flip": False, "pamr": 1, "train_images": 4},
    },
    "ccd": {
        "update_rounds": 2,
        "localize": {"image_size": 96, "output_stride": 32},
        "train": {"warmup_epochs": 1, "round_epochs": 1, "epochs": 3},
    },
    "mkt": {
        "student": {"image_size": 64},
        "recipe": {"epochs": 2, "batch_size": 20, "precision": "fp32"},
        "tune": {"epochs": 1, "batch_size": 20},
    },
}


# What stages/run tells the libraries, before they are imported.
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "ITERATIVE_DO_NOT_TRACK": "1"}
# Sixty stages need not compile the same modules anew, whatever the tests themselves do.
COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}
BINARIES = Path(sys.executable).parent
# Where the variables of a stage server stand in a project's environment, these bring the real Python and DVC back.
REAL_PYTHON = {"PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(BINARIES.parent)}


class Project:
    """A checkout in which DVC runs.

    Attributes:
        folder: its top.
        python: variables by which its stages find Python and DVC.
        ran: stages of its first run.
    """

    def __init__(self, folder: Path, python: Mapping[str, str] = REAL_PYTHON) -> None:
        self.folder = folder
        self.python = python
        self.ran: set[str] = set()
        self.environment = {
            **os.environ,
            **python,
            "DVC_NO_ANALYTICS": "1",
            "CLIPDISTILL_THREADS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            **COMPILED,
        }

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and result.returncode:
            raise AssertionError(
                f"{' '.join(command)} ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
            )
        return result

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message=state")

    def set(self, changes: dict[str, Any]) -> None:
        """Change params.yaml; keys are dotted paths."""
        content = yaml.safe_load((self.folder / "params.yaml").read_text())
        for key, value in changes.items():
            *sections, name = key.split(".")
            section = content
            for part in sections:
                section = section[part]
            section[name] = value
        (self.folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def repro(self, *targets: str) -> set[str]:
        """Run `dvc repro`; the names of the stages that were run."""
        output = self.run("dvc", "repro", *targets).stdout
        return set(re.findall(r"^Running stage '(?:.*:)?([^']+)':", output, flags=re.MULTILINE))

    def changed(self) -> set[str]:
        """Stages that `dvc status` finds changed by themselves, not through those before them."""
        status = json.loads(self.run("dvc", "status", "--json").stdout)
        return {name.split(":")[-1] for name in status}

    def json(self, path: str) -> Any:  # noqa: ANN401 - whatever the file holds
        return json.loads((self.folder / path).read_text())


def make_project(folder: Path, python: Mapping[str, str] = REAL_PYTHON) -> Project:
    """Copy what the pipeline needs, shrink its parameters, and commit."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "dvc.lock"))
        else:
            shutil.copy(source, target)
    project = Project(folder, python)
    flat = {
        f"{section}.{key}" if not isinstance(value, dict) else f"{section}.{key}.{inner}": leaf
        for section, keys in MINIATURE.items()
        for key, value in keys.items()
        for inner, leaf in (value.items() if isinstance(value, dict) else [("", value)])
    }
    project.set(flat)
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.run("git", "config", "user.email", "test@example.com")
    project.run("git", "config", "user.name", "test")
    project.commit()
    return project


# Of the files of a finished pipeline, these take longest.
LONGEST = ["test_pipeline.py", "test_faults.py", "test_sharing.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which two processes take the files: what is long first, so that both end together.

    The one that takes the first file makes the finished pipeline; meanwhile the other one runs what needs none.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def turn(item: pytest.Item) -> int:
        name = item.path.name
        if name == "test_reruns.py":
            return 0
        if item.path not in slow:
            return 9
        if item.path.parent != Path(__file__).parent:
            return 1
        return 2 + (LONGEST.index(name) if name in LONGEST else len(LONGEST))

    items.sort(key=turn)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables with which stages and DVC run in forks of a stage server of this process of tests."""
    if sys.platform != "linux":
        # Elsewhere a process with so many libraries may not survive a fork.
        yield REAL_PYTHON
        return
    folder = tmp_path_factory.mktemp("served")
    binaries, here = folder / "bin", Path(__file__).parent
    binaries.mkdir()
    for name, script in {"python": "", "dvc": BINARIES / "dvc", "clipdistill": BINARIES / "clipdistill"}.items():
        client = [sys.executable, "-I", "-S", here / "stage_client.py", folder / "socket", sys.executable]
        words = shlex.join(str(word) for word in [*client, script] if word)
        (binaries / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (binaries / name).chmod(0o755)
    command = [sys.executable, str(here / "stage_server.py"), str(folder / "socket")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment | QUIET | COMPILED
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        yield {"PATH": f"{binaries}{os.pathsep}{REAL_PYTHON['PATH']}", "VIRTUAL_ENV": str(folder)}
        # It ends when its stdin does.
        server.communicate()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, served: dict[str, str]) -> Project:
    """The miniature after one whole run, committed; tests put back what they change.

    It is run once for all processes of tests, and each has a copy.
    """
    base = tmp_path_factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    pattern, ran = common / "finished", common / "finished.json"
    with (common / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ran.exists():
            shutil.rmtree(pattern, ignore_errors=True)
            project = make_project(pattern, served)
            stages = project.repro()
            project.commit()
            ran.write_text(json.dumps(sorted(stages)))
    copy_project(pattern, base / "project")
    copy = Project(base / "project", served)
    copy.ran = set(json.loads(ran.read_text()))
    return copy


def copy_project(source: Path, target: Path) -> None:
    """Copy a project; what DVC has made read-only, in its cache and where it is linked from there, is linked."""

    def copy(file: str, place: str) -> None:
        if Path(file).lstat().st_mode & 0o222:
            shutil.copy2(file, place, follow_symlinks=False)
        else:
            os.link(file, place)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)


@pytest.fixture
def project(finished: Project) -> Iterator[Project]:
    """The finished project, and its state restored afterwards without running a stage."""
    yield finished
    finished.run("git", "checkout", "--quiet", "--force", ".")
    finished.run("git", "clean", "--quiet", "--force", "-d")
    finished.run("dvc", "checkout", "--force", "--quiet")


@pytest.fixture
def configured(finished: Project) -> Iterator[Project]:
    """The finished project for tests that change nothing but its parameters, which are put back."""
    yield finished
    finished.run("git", "checkout", "--quiet", "params.yaml")
