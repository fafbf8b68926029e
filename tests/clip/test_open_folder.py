import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import timm
import torch
import yaml

from clipdistill.clip import open_folder, teacher
from clipdistill.clip.open_folder import OpenStudent
from clipdistill.errors import ArtifactError, ParamsError
from clipdistill.students import model_folder, open_card, student_yaml, tokens, weights
from clipdistill.students.open_card import FILE, WEIGHTS, OpenCard
from clipdistill.students.student_yaml import MEAN, STD

VIT = "vit_tiny_patch16_224"


def card(**changes: Any) -> OpenCard:  # noqa: ANN401
    content: dict[str, Any] = {
        "model": "scenes-tiny",
        "quick_gelu": False,
        "backbone": "clip",
        "backbone_weights": "clip",
        "image_size": 64,
        "mean": list(MEAN),
        "std": list(STD),
        "prompt": "a photo of a {}.",
        "tuned": True,
        "k": 2,
        "norm": "cosine",
        "local": 0.9,
        "scale": 14.3,
        "shift": 0.125,
        "seen": ["dog", "potted plant", "café"],
        "provenance": {"table": "abc", "recipe": {"seed": 0}},
    }
    return OpenCard.model_validate(content | changes)


def build(seed: int = 0, **changes: Any) -> OpenStudent:  # noqa: ANN401
    torch.manual_seed(seed)
    teacher.register_architectures()
    model = teacher.create("scenes-tiny")
    if (backbone := changes.get("backbone", "clip")) != "clip":
        model.visual = open_folder.timm_tower(backbone, 64, 64)
    return OpenStudent(model.eval(), torch.randn(7, 64), card(**changes))


def make(folder: Path, seed: int = 0, **changes: Any) -> OpenStudent:  # noqa: ANN401
    student = build(seed, **changes)
    open_folder.save(folder, student)
    return student


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    make(folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    for name in (FILE, WEIGHTS):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("backbone", ["clip", VIT, "resnet10t"])
def test_round_trip(tmp_path: Path, backbone: str) -> None:
    student = make(tmp_path, backbone=backbone)
    loaded = open_folder.load(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {FILE, WEIGHTS}
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.card == student.card.model_copy(update={"sha256": loaded.card.sha256})
    assert torch.equal(loaded.context, student.context)
    state, other = student.model.state_dict(), loaded.model.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(value, other[key]) for key, value in state.items())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for mine, theirs in zip(
            *(tokens.token_embeddings(s.model.visual, images) for s in (student, loaded)), strict=True
        ):
            assert torch.equal(mine, theirs)
    scoring = loaded.scoring
    assert (scoring.k, scoring.norm, scoring.local, scoring.scale, scoring.shift) == (2, "cosine", 0.9, 14.3, 0.125)


def test_equal_students_give_equal_bytes(written: Path, tmp_path: Path) -> None:
    make(tmp_path)
    for name in (FILE, WEIGHTS):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_memory_layout_does_not_matter(written: Path, tmp_path: Path) -> None:
    student = build()
    student.model.visual.to(memory_format=torch.channels_last)
    open_folder.save(tmp_path, replace(student, context=student.context.T.contiguous().T))
    assert (tmp_path / WEIGHTS).read_bytes() == (written / WEIGHTS).read_bytes()


def test_a_saved_student_can_be_saved_again(written: Path, tmp_path: Path) -> None:
    open_folder.save(tmp_path, open_folder.load(written))
    for name in (FILE, WEIGHTS):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


@pytest.mark.parametrize("name", [FILE, WEIGHTS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError) as caught:
        open_folder.load(folder)
    assert str(caught.value) == f"{folder / name} is missing: {student_yaml.CURE}"


def test_an_altered_byte_is_noticed(folder: Path) -> None:
    path = folder / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"open_student\.safetensors has SHA-256 .*open_student\.yaml was written"):
        open_folder.load(folder)


def test_weights_of_another_student_are_noticed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    make(other, seed=1)
    (folder / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes())
    with pytest.raises(ArtifactError, match="SHA-256"):
        open_folder.load(folder)


def test_weights_without_a_hash_are_refused(folder: Path) -> None:
    path = folder / FILE
    content = yaml.safe_load(path.read_text()) | {"sha256": ""}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ArtifactError, match="was written for none"):
        open_folder.load(folder)


def reseal(folder: Path) -> None:
    """Let the card hold the hash of whatever the weights are now."""
    path = folder / FILE
    content = yaml.safe_load(path.read_text()) | {"sha256": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()}
    path.write_text(yaml.safe_dump(content))


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path("payload-ran").touch, ()


def test_tensors_alone_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    torch.save({"context": torch.zeros(7, 64), "model.x": _Payload()}, folder / WEIGHTS)
    reseal(folder)
    with pytest.raises(ArtifactError, match=r"open_student\.safetensors cannot be read"):
        open_folder.load(folder)
    assert not (folder / "payload-ran").exists()


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 4096])
def test_what_are_no_weights_is_refused(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    reseal(folder)
    with pytest.raises(ArtifactError, match=r"open_student\.safetensors cannot be read"):
        open_folder.load(folder)


def _set(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(key, value)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / FILE
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "ViT-B-16"),
        ("quick_gelu", True),
        ("backbone", "resnet10t"),
        ("image_size", 96),
        ("mean", [0.5, 0.5, 0.5]),
        ("std", [0.25, 0.25, 0.25]),
        ("prompt", "a drawing of a {}."),
    ],
)
def test_what_embeddings_depend_on_cannot_be_edited(folder: Path, key: str, value: object) -> None:
    edit(folder, _set(key, value))
    with pytest.raises(ArtifactError, match=r"open_student\.yaml was altered: .*copy the folder again"):
        open_folder.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("k", 18), ("norm", "label"), ("local", 0.5), ("scale", 100.0), ("shift", -0.5), ("about", {"license": "mit"})],
)
def test_how_scores_are_made_may_be_edited(folder: Path, key: str, value: object) -> None:
    edit(folder, _set(key, value))
    loaded = open_folder.load(folder)
    assert getattr(loaded.card, key) == value
    assert getattr(loaded.scoring, key, value) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format_version", 2), r"of another version \(format_version: "),
        (_set("surprise", 1), "surprise"),
        (lambda content: content.pop("seen"), "seen: Field required"),
        (_set("seen", []), "seen: .*at least 1 item"),
        (_set("norm", "softmax"), "norm: "),
        (_set("k", 0), "k: .*greater than or equal to 1"),
        (_set("local", 1.5), "local: .*less than or equal to 1"),
        (_set("scale", 0.0), "scale: .*greater than 0"),
        (_set("scale", float("nan")), "scale: "),
        (_set("shift", float("nan")), "shift: .*finite"),
        (_set("shift", float("inf")), "shift: .*finite"),
        (_set("image_size", 5000), "image_size: .*2048"),
        (_set("mean", [0.5]), "mean: .*at least 3 items"),
        (_set("std", [0.2, 0.0, 0.2]), "std.1: .*greater than 0"),
        (_set("prompt", "a photo"), "prompt must hold {} exactly once"),
        (_set("prompt", "{} and {}"), "prompt must hold {} exactly once"),
        (_set("seen", ["dog", "dog"]), "a label stands twice in seen"),
        (_set("sha256", "abc"), "sha256: "),
    ],
)
def test_a_card_that_does_not_hold_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(ArtifactError, match=message) as caught:
        open_folder.load(folder)
    assert str(folder / FILE) in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "!!python/object/apply:os.getcwd []", "a: &a 1\nb: *a"])
def test_a_card_that_is_no_card_is_refused(folder: Path, text: str) -> None:
    (folder / FILE).write_text(text)
    with pytest.raises(ArtifactError, match=r"open_student\.yaml"):
        open_folder.load(folder)


def test_a_card_that_is_a_folder_is_refused(folder: Path) -> None:
    (folder / FILE).unlink()
    (folder / FILE).mkdir()
    with pytest.raises(ArtifactError, match=r"open_student\.yaml cannot be read"):
        open_folder.load(folder)


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = card(about={"method": "mkt"}, provenance={"nested": [1, {"a": None}]}, prompt="ein Bild: {}.")
    open_card.write(tmp_path, whole)
    assert open_card.read(tmp_path) == whole
    before = (tmp_path / FILE).read_bytes()
    open_card.write(tmp_path, whole)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["weights", "context"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: float, part: str) -> None:
    student = build()
    with torch.no_grad():
        (student.context if part == "context" else student.model.ln_final.bias)[0] = value
    open_folder.save(tmp_path, student)
    with pytest.raises(ArtifactError, match=r"open_student\.safetensors holds NaN or infinity"):
        open_folder.load(tmp_path)


@pytest.mark.parametrize("context", [None, torch.zeros(64)])
def test_a_student_without_a_context_is_refused(folder: Path, context: torch.Tensor | None) -> None:
    path = folder / WEIGHTS
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = safetensors.torch.load_file(path)
    del state["context"]
    safetensors.torch.save_file(state | ({} if context is None else {"context": context}), path, metadata)
    reseal(folder)
    with pytest.raises(ArtifactError, match=r"open_student\.safetensors has no context of prompts"):
        open_folder.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ViT-S-32"}, "is no ViT-S-32, as open_student.yaml says"),
        ({"model": "nonsense"}, "is no nonsense, as open_student.yaml says"),
        ({"model": "hf-hub:nobody/nothing"}, "is no hf-hub:nobody/nothing, as open_student.yaml says"),
        ({"model": "local-dir:/nowhere"}, "is no local-dir:/nowhere, as open_student.yaml says"),
        ({"backbone": "resnet18"}, "as open_student.yaml says .*(Missing|size mismatch)"),
        ({"backbone": "nonsense"}, "as open_student.yaml says .*nonsense cannot be had from timm"),
        ({"backbone": "hf-hub:nobody/nothing"}, "as open_student.yaml says .*cannot be had from timm"),
    ],
)
def test_weights_of_another_network_are_refused_whatever_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    """Nor does a folder from somewhere make this machine fetch anything."""

    def reach_out(*_: object, **__: object) -> None:
        pytest.fail("something was looked for on a hub")

    for name in ("open_clip.factory.download_pretrained_from_hf", "timm.models._hub.hf_hub_download"):
        monkeypatch.setattr(name, reach_out)
    open_folder.save(tmp_path, replace(build(), card=card(**changes)))
    with pytest.raises(ArtifactError, match=message) as caught:
        open_folder.load(tmp_path)
    assert str(tmp_path / WEIGHTS) in str(caught.value)


def test_a_full_disk_leaves_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is written last: without it nothing is taken for a student."""

    def full(path: Path, _: bytes) -> None:
        raise ArtifactError(f"{path}: cannot be written")

    monkeypatch.setattr(model_folder, "write_atomically", full)
    with pytest.raises(ArtifactError, match="cannot be written"):
        make(tmp_path)
    assert not list(tmp_path.iterdir())


# Towers of timm.


def test_a_transformer_of_timm_takes_the_size_that_it_is_made_for() -> None:
    tower = open_folder.timm_tower(VIT, 32, 64).eval()
    with torch.no_grad():
        cls, patches = tokens.token_embeddings(tower, torch.randn(2, 3, 64, 64))
    assert (cls.shape, patches.shape) == ((2, 32), (2, 16, 32))


@pytest.mark.parametrize(
    ("name", "size"),
    [("nonsense", 64), ("hf-hub:nobody/nothing", 96), ("mixer_s16_224", 64), ("mobilenetv3_small_050", 64)],
)
def test_a_network_that_cannot_be_had_is_named(name: str, size: int) -> None:
    message = rf"mkt\.student\.backbone: {name} cannot be had from timm for {size} pixels \(.+\)"
    with pytest.raises(ParamsError, match=message):
        open_folder.timm_tower(name, 32, size)


def test_pretrained_weights_that_cannot_be_fetched_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(ParamsError, match=rf"{VIT} cannot be had from timm for 64 pixels \(no route to the hub\)"):
        open_folder.timm_tower(VIT, 32, 64, pretrained=True)


def test_the_width_is_that_of_the_texts() -> None:
    assert open_folder.embedding_width(build().model) == 64


def test_a_teacher_without_a_projection_of_texts_has_no_width() -> None:
    model = build().model
    model.text_projection = None
    with pytest.raises(ParamsError, match="without a projection of its texts"):
        open_folder.embedding_width(model)


# Their first weights.


def trunk(seed: int = 0, classes: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    network: torch.nn.Module = timm.create_model("resnet10t", num_classes=classes)
    return network


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("classes", [0, 10])
def test_a_file_fills_a_trunk(tmp_path: Path, name: str, classes: int) -> None:
    source, path = trunk(1, classes).state_dict(), tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(source, path)
    else:
        torch.save(source, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    target = trunk()
    assert weights.load_trunk(target, path, digest, "mkt.student") == f"{name} sha256:{digest}"
    assert all(torch.equal(value, source[key]) for key, value in target.state_dict().items())


def test_a_file_with_another_hash_fills_nothing(tmp_path: Path) -> None:
    path, target, before = tmp_path / "weights.safetensors", trunk(), trunk().state_dict()
    safetensors.torch.save_file(trunk(1).state_dict(), path)
    message = r"mkt\.student\.weights: .*weights\.safetensors has SHA-256 .*mkt\.student\.sha256 is 0{64}"
    with pytest.raises(ArtifactError, match=message):
        weights.load_trunk(target, path, "0" * 64, "mkt.student")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_a_file_that_does_not_fit_names_the_keys(tmp_path: Path) -> None:
    state, path = trunk(1).state_dict(), tmp_path / "weights.safetensors"
    del state["bn1.weight"]
    state["layer1.0.conv1.weight"] = torch.zeros(3)
    state["layer9.weight"] = torch.zeros(3)
    safetensors.torch.save_file(state, path)
    with pytest.raises(ArtifactError) as caught:
        weights.load_trunk(trunk(), path, hashlib.sha256(path.read_bytes()).hexdigest(), "mkt.student")
    for line in ("does not fit", "missing: bn1.weight", "unknown: layer9.weight", "shape: layer1.0.conv1.weight [3]"):
        assert line in str(caught.value)


@pytest.mark.parametrize("content", [None, b"other"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    digest = hashlib.sha256(content or b"").hexdigest()
    with pytest.raises(ArtifactError, match=r"mkt\.student\.weights: .*weights\.safetensors"):
        weights.load_trunk(trunk(), path, digest, "mkt.student")
