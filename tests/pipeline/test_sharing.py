"""A cache that a group shares: from one clone into another, by a folder, an S3 and an SSH server of our own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import boto3
import pytest
import yaml
from conftest import ROOT, Project
from moto.server import ThreadedMotoServer

pytestmark = pytest.mark.slow

TEXT = "cache/scenes/text.zarr"
CHECK = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "-o", ".venv/.ready", "check-remote"]


class Clone(Project):
    """Another member's clone of a project, with the group's remote."""

    def __init__(self, source: Project, folder: Path, remote: str, **options: str) -> None:
        super().__init__(folder, source.python)
        source.run("git", "clone", "--quiet", str(source.folder), str(folder))
        set_remote(self, remote, **options)


def set_remote(project: Project, remote: str, **options: str) -> None:
    """What `dvc remote add --local --default team REMOTE` and `dvc remote modify` write, in a tenth of their time."""
    lines = ["[core]", "    remote = team", "['remote \"team\"']", f"    url = {remote}"]
    lines += [f"    {option} = {value}" for option, value in options.items()]
    (project.folder / ".dvc" / "config.local").write_text("\n".join(lines) + "\n")


def contents(project: Project, folder: str) -> dict[str, bytes]:
    top = project.folder / folder
    files = (file for file in top.rglob("*") if file.is_file() and file.name != ".gitignore")
    return {file.relative_to(top).as_posix(): file.read_bytes() for file in files}


def object_of(project: Project, remote: Path, path: str) -> Path:
    """The remote's file that holds one file of a tracked folder, as the folder's own listing names it."""
    folder, name = path.rsplit(".zarr/", 1)
    outs = [out for stage in locked(project).values() for out in stage.get("outs", [])]
    listing = next(out["md5"] for out in outs if out["path"] == f"{folder}.zarr")
    entries = json.loads(stored(remote, listing).read_text())
    return stored(remote, next(entry["md5"] for entry in entries if entry["relpath"] == name))


def locked(project: Project) -> dict[str, dict[str, list[dict[str, str]]]]:
    stages: dict[str, dict[str, list[dict[str, str]]]] = yaml.safe_load((project.folder / "dvc.lock").read_text())[
        "stages"
    ]
    return stages


def stored(remote: Path, md5: str) -> Path:
    return remote / "files" / "md5" / md5[:2] / md5[2:]


def alter(file: Path) -> None:
    """Change one byte and leave size and mode as they were, as a failing disk does."""
    content, mode = bytearray(file.read_bytes()), file.stat().st_mode
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(bytes(content))
    file.chmod(mode)


@pytest.fixture(scope="module")
def pushed(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to which the finished project was pushed, its run cache too."""
    folder = tmp_path_factory.mktemp("sharing") / "remote"
    set_remote(finished, str(folder), verify="true")
    finished.run("dvc", "push", "--run-cache")
    yield folder
    (finished.folder / ".dvc" / "config.local").unlink()


@pytest.fixture
def remote(pushed: Path, tmp_path: Path) -> Path:
    """A remote of the test's own, whose files it may replace."""
    shutil.copytree(pushed, tmp_path / "remote", copy_function=os.link)
    return tmp_path / "remote"


@pytest.fixture
def clone(finished: Project, remote: Path, tmp_path: Path) -> Clone:
    return Clone(finished, tmp_path / "clone", str(remote), verify="true")


def test_a_second_clone_runs_nothing_and_so_shows_clip_no_image(finished: Project, clone: Clone) -> None:
    clone.run("dvc", "pull")
    assert clone.repro() == set()
    for folder in ("cache", "data", "metrics"):
        assert contents(clone, folder) == contents(finished, folder)


def test_the_run_cache_brings_back_what_no_lock_file_names(clone: Clone) -> None:
    """As after a conflict in dvc.lock: every stage up to the students' scores is found by what goes into it."""
    clone.run("dvc", "pull", "--run-cache")
    for lock in clone.folder.rglob("dvc.lock"):
        lock.unlink()
    assert clone.repro("predict@cdul", "predict@ccd") == set()
    assert {"train@cdul", "train@ccd", "predict@cdul"} <= set(locked(clone))


def test_labels_alone_are_enough_to_train_from(clone: Clone) -> None:
    # Not at once: where stages and paths are named together, DVC leaves some of them out.
    clone.run("dvc", "pull", "pseudo_label@cdul", "format")
    clone.run("dvc", "pull", "data/raw/scenes")
    clone.set({"train.cdul.step": 0.5})
    assert clone.repro("--allow-missing", "train@cdul") == {"train@cdul"}
    assert (clone.folder / "cache/scenes/students/cdul/student.safetensors").is_file()
    for kind in ("global", "snippets"):
        assert not (clone.folder / f"cache/scenes/train/{kind}.zarr").exists()


def test_a_missing_object_is_named_and_what_is_there_stays(clone: Clone, remote: Path) -> None:
    clone.run("dvc", "pull", "format")
    before = contents(clone, "data/scenes")
    lost = object_of(clone, remote, f"{TEXT}/manifest.json")
    lost.unlink()
    result = clone.run("dvc", "pull", "embed_text", "format", check=False)
    assert result.returncode > 0
    assert str(lost) in result.stderr
    assert not (clone.folder / TEXT / "manifest.json").exists()
    assert contents(clone, "data/scenes") == before


def test_the_check_before_a_long_run_names_what_the_remote_lacks(clone: Clone, remote: Path) -> None:
    clone.run("dvc", "pull", "embed_text")
    assert clone.run(*CHECK).returncode == 0
    object_of(clone, remote, f"{TEXT}/manifest.json").unlink()
    result = clone.run(*CHECK, check=False)
    assert result.returncode > 0
    assert result.stdout == f"{TEXT}/manifest.json\n"
    assert "dvc push" in result.stderr


@pytest.fixture
def small(tmp_path: Path) -> Project:
    """A checkout with one tracked file and no remote."""
    project = Project(tmp_path / "my small")
    project.folder.mkdir()
    (project.folder / "data.txt").write_text("content")
    for command in ("git init --quiet", "dvc init --quiet", "dvc add --quiet data.txt"):
        project.run(*command.split())
    return project


def test_a_remote_that_cannot_be_asked_is_not_taken_for_one_that_lacks_everything(small: Project) -> None:
    def refusal() -> str:
        result = small.run(*CHECK, check=False)
        assert result.returncode > 0
        assert "data.txt" not in result.stdout
        return result.stderr

    assert "no default remote: dvc remote add --default" in refusal()
    set_remote(small, "../../my remote")
    assert f"folder {small.folder.parent / 'my remote'} is not there" in refusal()
    (small.folder.parent / "my remote").mkdir()
    lacking = small.run(*CHECK, check=False)
    assert (lacking.returncode > 0, lacking.stdout) == (True, "data.txt\n")
    small.run("dvc", "push")
    assert small.run(*CHECK).stdout == "the remote has all of this commit\n"
    set_remote(small, "unknown://team")
    assert "could not be asked" in refusal()


def test_an_altered_object_is_refused_where_dvc_verifies(clone: Clone, remote: Path) -> None:
    alter(object_of(clone, remote, f"{TEXT}/manifest.json"))
    result = clone.run("dvc", "pull", "embed_text", check=False)
    assert result.returncode > 0
    assert not (clone.folder / TEXT / "manifest.json").exists()


def test_an_altered_object_that_dvc_takes_is_refused_by_its_reader(
    finished: Project, remote: Path, tmp_path: Path
) -> None:
    trusting = Clone(finished, tmp_path / "trusting", str(remote), verify="false")
    alter(object_of(trusting, remote, f"{TEXT}/embedding/zarr.json"))
    trusting.run("dvc", "pull", "embed_text", "format")
    assert "modified" not in trusting.run("dvc", "data", "status", "--json").stdout
    command = ["python", "-c", "from clipdistill.cli import main; main()", "show", TEXT]
    result = trusting.run(*command, check=False, PYTHONPATH=str(ROOT / "src"))
    assert result.returncode == 4
    assert f"{TEXT}/embedding/zarr.json was altered" in result.stderr
    assert "dvc pull" in result.stderr


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """An S3 server on a free port of this machine with one bucket: the bucket's address and the server's."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="team")
    yield "s3://team/clipdistill", endpoint
    server.stop()


def test_an_s3_server_is_a_remote(finished: Project, bucket: tuple[str, str], tmp_path: Path) -> None:
    address, endpoint = bucket
    giver, taker = (
        Clone(finished, tmp_path / name, address, endpointurl=endpoint, verify="true") for name in ("giver", "taker")
    )
    (giver.folder / ".dvc" / "cache").symlink_to(finished.folder / ".dvc" / "cache")
    giver.run("dvc", "push")
    taker.run("dvc", "pull")
    assert taker.repro() == set()
    for folder in ("cache", "data", "metrics"):
        assert contents(taker, folder) == contents(finished, folder)


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An SSH server on a free port of this machine that lets one key in, to a folder: the options of its remote."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o600)
    key.write_public_key(tmp_path / "authorized_keys")
    (tmp_path / "served" / "team").mkdir(parents=True)

    def root(channel: asyncssh.SSHServerChannel) -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(channel, chroot=str(tmp_path / "served"))

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=str(tmp_path / "authorized_keys"),
            sftp_factory=root,
        )

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    yield {"port": str(server.get_port()), "keyfile": str(tmp_path / "key")}
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_an_ssh_server_is_a_remote(finished: Project, ssh: dict[str, str], tmp_path: Path) -> None:
    """With what a training needs beside its images; the whole goes to the S3 server."""
    giver, taker = (
        Clone(finished, tmp_path / name, "ssh://team@127.0.0.1/team", verify="true", **ssh)
        for name in ("giver", "taker")
    )
    (giver.folder / ".dvc" / "cache").symlink_to(finished.folder / ".dvc" / "cache")
    for command in ("push", "pull"):
        {"push": giver, "pull": taker}[command].run("dvc", command, "pseudo_label@cdul", "format")
    for folder in ("data/scenes", "cache/scenes/train/labels/cdul.zarr"):
        assert contents(taker, folder) == contents(finished, folder) != {}
