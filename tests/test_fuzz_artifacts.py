"""Readers of parameters, artifacts, cards and weights against damaged files: values that hold, or an error for people.

As in tests/datasets/test_fuzz_readers.py, $CLIPDISTILL_FUZZ_SECONDS draws new cases.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

import damage
from clipdistill import params, store
from clipdistill.clip import adapter, open_folder, teacher
from clipdistill.distributed import Compute
from clipdistill.params import ClipParams, StudentParams
from clipdistill.students import classifier, model_folder, open_card, student_yaml
from clipdistill.students.open_card import OpenCard
from clipdistill.students.student_yaml import FILE, MEAN, STD, WEIGHTS, Card
from clipdistill.training.checkpoint import Checkpoint, read_states, write_state

ROOT = Path(__file__).resolve().parents[1]
STUDENT = StudentParams(output_stride=32, backbone="shufflenet_v2_x0_5", image_size=64)


def test_damaged_parameters_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    damage.fuzz(tmp_path, ["params.yaml"], lambda: params.load(tmp_path / "params.yaml"), examples=40)


def test_damaged_settings_of_a_machine_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "compute.yaml").write_text("device: cpu\nprocesses: 2\nnodes: 2\nrendezvous: host:1\ncompile: false\n")
    damage.fuzz(tmp_path, ["compute.yaml"], lambda: Compute.load(tmp_path / "compute.yaml"), examples=200)


def test_a_damaged_artifact_is_refused(tmp_path: Path) -> None:
    """Whatever is changed in a file is noticed; so a manifest that is read still lists the very same files."""
    path = tmp_path / "a.zarr"
    store.write_group(path, {"x": np.arange(12.0).reshape(4, 3)}, {"table": "abc"})

    def read() -> None:
        assert store.read_group(path, {"table": "abc"}).read("x").tolist() == np.arange(12.0).reshape(4, 3).tolist()

    files = [store.MANIFEST, "zarr.json", "x/zarr.json", "x/c/0/0"]
    damage.fuzz(tmp_path, [f"a.zarr/{file}" for file in files], read, examples=60)


def test_an_artifact_that_vouches_for_damage_is_read_or_refused(tmp_path: Path) -> None:
    """A manifest that somebody wrote for the damaged files: all that is left is what Zarr itself notices."""
    path = tmp_path / "a.zarr"
    store.write_group(path, {"x": np.arange(12.0).reshape(4, 3)}, {"table": "abc"})

    def read() -> None:
        store.write_manifest(path)
        found = store.read_group(path)
        assert isinstance(found.layout(), dict)
        for name in found.names:
            if np.prod(found.shape(name)) < 1e6:
                assert isinstance(found.read(name), np.ndarray)

    damage.fuzz(tmp_path, [f"a.zarr/{file}" for file in ("zarr.json", "x/zarr.json", "x/c/0/0")], read, examples=60)


def test_a_damaged_card_of_a_student_is_read_or_refused(tmp_path: Path) -> None:
    _write_student(tmp_path)

    def read() -> None:
        card = student_yaml.read(tmp_path)
        assert len(card.classes) == len(card.thresholds)
        student_yaml.write(tmp_path / "again", card)
        assert student_yaml.read(tmp_path / "again") == card

    damage.fuzz(tmp_path, [FILE], read, examples=150)


def _write_student(folder: Path) -> None:
    student = classifier.build(STUDENT, 2, seed=0)
    card = Card.of(student, STUDENT, "sigmoid", ["cat", "dog"], {"table": "abc", "recipe": {"seed": 0}})
    model_folder.save(folder, student, card)


def test_a_damaged_student_is_loaded_or_refused(tmp_path: Path) -> None:
    """Its weights vouched for by the card, as whoever hands out a model folder can do."""
    _write_student(tmp_path)
    card = student_yaml.read(tmp_path)

    def read() -> None:
        digest = store.file_sha256(tmp_path / WEIGHTS)
        if digest != card.sha256:
            student_yaml.write(tmp_path, card.model_copy(update={"sha256": digest}))
        student, found = model_folder.load(tmp_path)
        assert student.head.out_channels == len(found.classes)

    damage.fuzz(tmp_path, [FILE, WEIGHTS], read, examples=40)


OPEN_CARD = OpenCard(
    model="scenes-tiny",
    quick_gelu=False,
    backbone="clip",
    backbone_weights="clip",
    image_size=64,
    mean=list(MEAN),
    std=list(STD),
    prompt="a photo of a {}.",
    tuned=True,
    k=2,
    norm="cosine",
    local=0.9,
    scale=14.3,
    shift=0.125,
    seen=["dog", "potted plant"],
    provenance={"table": "abc", "recipe": {"seed": 0}},
)


def test_a_damaged_card_of_an_open_vocabulary_student_is_read_or_refused(tmp_path: Path) -> None:
    open_card.write(tmp_path, OPEN_CARD)

    def read() -> None:
        card = open_card.read(tmp_path)
        assert min(card.std) > 0
        assert card.prompt.count("{}") == 1
        assert len(set(card.seen)) == len(card.seen) > 0
        open_card.write(tmp_path / "again", card)
        assert open_card.read(tmp_path / "again") == card

    damage.fuzz(tmp_path, [open_card.FILE], read, examples=100)


def test_a_damaged_open_vocabulary_student_is_loaded_or_refused(tmp_path: Path) -> None:
    """Its weights vouched for by the card."""
    teacher.register_architectures()
    model = teacher.create("scenes-tiny")
    open_folder.save(tmp_path, open_folder.OpenStudent(model, torch.randn(7, 64), OPEN_CARD))
    card = open_card.read(tmp_path)

    def read() -> None:
        digest = store.file_sha256(tmp_path / open_card.WEIGHTS)
        if digest != card.sha256:
            open_card.write(tmp_path, card.model_copy(update={"sha256": digest}))
        student = open_folder.load(tmp_path)
        assert student.embed(["cat"]).shape == (1, 64)

    damage.fuzz(tmp_path, [open_card.FILE, open_card.WEIGHTS], read, examples=12)


def _write_adapter(folder: Path) -> Callable[[], None]:
    """An adapter of a tiny teacher; adds it to a copy of the teacher."""
    teacher.register_architectures()
    model = teacher.create("scenes-tiny")
    weights = teacher.weights_digest(model)
    adapted = adapter.add(copy.deepcopy(model), 2, 4.0, seed=0)
    with torch.no_grad():
        for tensor in adapter.learning(adapted).values():
            tensor.add_(0.1)
    adapter.save(folder, adapted, weights, {"made": "by a test"})

    def read() -> None:
        found = copy.deepcopy(model)
        adapter.merge(found, folder, weights)
        assert all(torch.isfinite(value).all() for value in found.state_dict().values())

    return read


def test_a_damaged_adapter_is_added_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="adapters need the extra ttd")
    read = _write_adapter(tmp_path)
    damage.fuzz(tmp_path, [adapter.CARD, adapter.CONFIG, adapter.WEIGHTS], read, examples=20)


def test_an_adapter_that_vouches_for_damage_is_added_or_refused(tmp_path: Path) -> None:
    """A card that somebody wrote for the damaged files."""
    pytest.importorskip("peft", reason="adapters need the extra ttd")
    merge = _write_adapter(tmp_path)
    card = yaml.safe_load((tmp_path / adapter.CARD).read_text())

    def read() -> None:
        sums = {name: store.file_sha256(tmp_path / name) for name in (adapter.CONFIG, adapter.WEIGHTS)}
        (tmp_path / adapter.CARD).write_text(yaml.safe_dump(card | {"sha256": sums}))
        merge()

    damage.fuzz(tmp_path, [adapter.CONFIG, adapter.WEIGHTS], read, examples=30)


def test_a_damaged_card_of_a_teacher_is_read_or_refused(tmp_path: Path) -> None:
    _save(tmp_path / "scenes.safetensors", _tiny_teacher())
    card = {"architecture": "scenes-tiny", "sha256": store.file_sha256(tmp_path / "scenes.safetensors")}
    (tmp_path / "scenes.yaml").write_text(yaml.safe_dump(card))

    def read() -> None:
        teacher.load(ClipParams(), tmp_path)

    damage.fuzz(tmp_path, ["scenes.yaml"], read, examples=20)


def _tiny_teacher() -> dict[str, torch.Tensor]:
    teacher.register_architectures()
    return {key: value.contiguous() for key, value in teacher.create("scenes-tiny").state_dict().items()}


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_damaged_weights_of_a_teacher_are_loaded_or_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _save(path, _tiny_teacher())

    def read() -> None:
        settings = {"source": "file", "model": "scenes-tiny", "weights": str(path), "sha256": store.file_sha256(path)}
        teacher.load(ClipParams.model_validate(settings))

    damage.fuzz(tmp_path, [name], read, examples=10)


def _save(path: Path, state: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_damaged_first_weights_of_a_student_are_loaded_or_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _save(path, dict(classifier.build(STUDENT, 2, seed=0).features.state_dict()))

    def read() -> None:
        settings = {"weights": str(path), "sha256": store.file_sha256(path)}
        classifier.build(STUDENT.model_copy(update=settings), 2, seed=0)

    damage.fuzz(tmp_path, [name], read, examples=15)


def test_a_damaged_checkpoint_is_read_or_refused(tmp_path: Path) -> None:
    optimiser = {"state": {0: {"step": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    Checkpoint(1, {"w": torch.zeros(2, 2)}, optimiser, torch.zeros(3, 2), [{"loss": 0.5}], None).write(tmp_path)
    damage.fuzz(tmp_path, ["checkpoint.pt"], lambda: Checkpoint.read(tmp_path), examples=100)


def test_a_damaged_state_of_training_is_read_or_refused(tmp_path: Path) -> None:
    for epoch in (0, 1):
        write_state(tmp_path, "labels", epoch, np.zeros((3, 2), np.float32))
    damage.fuzz(tmp_path, ["labels/00001.npy"], lambda: read_states(tmp_path, "labels", [0, 1]), examples=100)
