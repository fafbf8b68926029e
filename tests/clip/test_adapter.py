"""Adapters: what they change, that they learn, and that only the right ones are taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

from clipdistill.clip import adapter, teacher
from clipdistill.errors import ArtifactError, TeacherError
from clipdistill.store import file_sha256
from clipdistill.students import tokens

pytest.importorskip("peft", reason="adapters need the extra ttd")
teacher.register_architectures()

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def small_vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    import open_clip

    folder = tmp_path_factory.mktemp("architectures")
    (folder / "adapted-vit.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder)
    return "adapted-vit"


def fresh(name: str, state: dict[str, torch.Tensor] | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = teacher.create(name)
    for module in model.modules():
        # timm begins with blocks that are switched off, through which no gradient flows.
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    if state is not None:
        model.load_state_dict(state)
    return model


def shaken(adapted: adapter.Adapted) -> None:
    """Give an adapter that changes nothing yet tensors that do."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in adapter.learning(adapted).values():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))


@torch.no_grad()
def outputs(model: nn.Module, size: int) -> tuple[torch.Tensor, ...]:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    text = torch.randint(1, 1000, (2, 16), generator=torch.Generator().manual_seed(3))
    return model.encode_image(images), model.encode_text(text), tokens.dense_embeddings(model.visual, images)


@pytest.fixture(params=["scenes-tiny", "small_vit"])
def kind(request: pytest.FixtureRequest) -> tuple[str, int]:
    if request.param == "small_vit":
        return request.getfixturevalue("small_vit"), 32
    return request.param, 96


def saved(kind: tuple[str, int], folder: Path) -> tuple[nn.Module, str, dict[str, torch.Tensor]]:
    """A model with a shaken adapter that was written; the digest of its own weights, and these."""
    model = fresh(kind[0])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    digest = teacher.weights_digest(model)
    adapted = adapter.add(model, 4, 8.0, seed=0)
    shaken(adapted)
    adapter.save(folder, adapted, digest, {"made": "by a test"})
    return model, digest, state


def test_a_new_adapter_changes_nothing_and_every_tensor_learns(kind: tuple[str, int]) -> None:
    model = fresh(kind[0])
    before = outputs(model, kind[1])
    adapted = adapter.add(model, 4, 4.0, seed=0)
    for found, wanted in zip(outputs(model, kind[1]), before, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    shaken(adapted)
    images, text = torch.randn(2, 3, kind[1], kind[1]), torch.randint(1, 1000, (2, 16))
    loss = tokens.dense_embeddings(model.visual, images).square().sum() + model.encode_text(text).square().sum()
    loss.backward()
    learning = adapter.learning(adapted)
    assert learning
    assert [name for name, tensor in learning.items() if tensor.grad is None or not tensor.grad.abs().sum()] == []
    towers = {name.split("base_model.model.")[1].split(".")[0] for name in learning}
    assert towers == {"visual", "transformer"}


def test_the_weights_stay_the_same_to_the_bit_however_often_it_runs(small_vit: str) -> None:
    model = fresh(small_vit)
    digest = teacher.weights_digest(model)
    adapted = adapter.add(model, 4, 4.0, seed=0)
    shaken(adapted)
    first = outputs(model, 32)
    for _ in range(5):
        for found, wanted in zip(outputs(model, 32), first, strict=True):
            assert torch.equal(found, wanted)
    with torch.no_grad():
        for tensor in adapter.learning(adapted).values():
            tensor.zero_()
    outputs(model, 32)
    adapted.merge_and_unload()
    assert teacher.weights_digest(model) == digest


def test_an_adapter_changes_the_value_path_too(kind: tuple[str, int]) -> None:
    model = fresh(kind[0])
    before = outputs(model, kind[1])[2]
    shaken(adapter.add(model, 4, 8.0, seed=0))
    assert (outputs(model, kind[1])[2] - before).abs().max() > 1e-3


def test_merged_it_is_what_it_was_beside_the_weights(kind: tuple[str, int], tmp_path: Path) -> None:
    model = fresh(kind[0])
    adapted = adapter.add(model, 4, 8.0, seed=0)
    shaken(adapted)
    beside = outputs(model, kind[1])
    _, digest, state = saved(kind, tmp_path)
    other = fresh(kind[0], state)
    sha256 = adapter.merge(other, tmp_path, digest)
    assert sha256 == file_sha256(tmp_path / adapter.WEIGHTS)
    assert other.state_dict().keys() == state.keys()
    for found, wanted in zip(outputs(other, kind[1]), beside, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_equal_tensors_give_equal_bytes(kind: tuple[str, int], tmp_path: Path) -> None:
    for name in ("one", "two"):
        saved(kind, tmp_path / name)
    for name in (adapter.WEIGHTS, adapter.CONFIG, adapter.CARD):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_peft_itself_reads_it(small_vit: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model, _, state = saved((small_vit, 32), tmp_path)
    other = fresh(small_vit, state)
    PeftModel.from_pretrained(other, str(tmp_path))
    for found, wanted in zip(outputs(other, 32), outputs(model, 32), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_a_teacher_takes_it_and_says_so(tmp_path: Path) -> None:
    from clipdistill.params import ClipParams

    model = fresh("scenes-tiny")
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), weights)
    saved(("scenes-tiny", 96), tmp_path / "adapter")
    plain = ClipParams(source="file", weights=str(weights), sha256=file_sha256(weights))
    without, adapted = (
        teacher.load(params) for params in (plain, plain.model_copy(update={"adapter": str(tmp_path / "adapter")}))
    )
    assert "adapter" not in without.identity
    assert adapted.identity["adapter"] == file_sha256(tmp_path / "adapter" / adapter.WEIGHTS)
    assert adapted.identity["weights"] != without.identity["weights"]


def altered_config(folder: Path, **changes: object) -> None:
    """Change the configuration, and let the card know its new sum."""
    config = json.loads((folder / adapter.CONFIG).read_text()) | changes
    (folder / adapter.CONFIG).write_text(json.dumps(config))
    resealed(folder)


def altered_card(folder: Path, **changes: object) -> None:
    card = yaml.safe_load((folder / adapter.CARD).read_text()) | changes
    (folder / adapter.CARD).write_text(yaml.safe_dump(card))


def resealed(folder: Path) -> None:
    """Let the card vouch for what is there, as whoever hands out a folder can do."""
    altered_card(folder, sha256={name: file_sha256(folder / name) for name in (adapter.CONFIG, adapter.WEIGHTS)})


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    kind = ("scenes-tiny", 96)
    _, digest, state = saved(kind, tmp_path / "good")
    with pytest.raises(TeacherError, match="was trained for weights"):
        adapter.merge(fresh(kind[0], state), tmp_path / "good", "0" * 64)
    with pytest.raises(ArtifactError, match=r"adapter\.yaml is missing"):
        adapter.merge(fresh(kind[0], state), tmp_path / "none", digest)
    saved(kind, tmp_path / "targets")
    altered_config(tmp_path / "targets", target_modules=["visual.head.proj"])
    with pytest.raises(TeacherError, match="does not fit the teacher"):
        adapter.merge(fresh(kind[0], state), tmp_path / "targets", digest)


def test_a_hand_that_changed_how_much_is_added_is_told_apart_from_peft(tmp_path: Path) -> None:
    _, digest, state = saved(("scenes-tiny", 96), tmp_path)
    good = (tmp_path / adapter.CARD).read_text()
    altered_config(tmp_path, lora_alpha=80.0)
    message = r"either lora_alpha in adapter_config\.json or change in adapter\.yaml was edited .*, or another version"
    with pytest.raises(TeacherError, match=message):
        adapter.merge(fresh("scenes-tiny", state), tmp_path, digest)
    altered_config(tmp_path, lora_alpha=8.0)
    card = yaml.safe_load(good)
    altered_card(tmp_path, change=2 * card["change"])
    with pytest.raises(TeacherError, match=message):
        adapter.merge(fresh("scenes-tiny", state), tmp_path, digest)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, str]:
    folder = tmp_path_factory.mktemp("written")
    _, digest, state = saved(("scenes-tiny", 96), folder)
    return folder, fresh("scenes-tiny", state), digest


@pytest.fixture
def whole(written: tuple[Path, nn.Module, str], tmp_path: Path) -> tuple[Path, nn.Module, str]:
    """A copy of an adapter that may be damaged; a model, which what is refused before peft sees it leaves as it was."""
    shutil.copytree(written[0], tmp_path, dirs_exist_ok=True)
    return tmp_path, *written[1:]


def unreachable(*_: object, **__: object) -> None:
    pytest.fail("peft was asked")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: Input should be 'LORA'"),
        ({"r": 1_000_000}, "r: Input should be less than or equal to 512"),
        ({"r": 512}, r"says r = 512, but \S+lora_[AB]\S+ in \S+adapter_model\.safetensors is \[\d+"),
        ({"r": 2}, "says r = 2, but "),
        ({"r": 0}, "r: .*greater than or equal to 1"),
        ({"r": True}, "r: .*integer"),
        ({"r": 4.0}, "r: .*integer"),
        ({"target_modules": "("}, "target_modules: .*list"),
        ({"target_modules": "all-linear"}, "target_modules: .*list"),
        ({"target_modules": []}, "target_modules: "),
        ({"target_modules": ["attn", 1]}, r"target_modules\.1: .*string"),
        ({"lora_alpha": 0}, "lora_alpha: .*greater than 0"),
        ({"lora_alpha": -1.0}, "lora_alpha: .*greater than 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha: "),
        ({"lora_alpha": float("inf")}, "lora_alpha: .*finite"),
        ({"lora_alpha": 10**400}, "lora_alpha: "),
        ({"lora_alpha": True}, "lora_alpha: "),
    ],
)
def test_a_configuration_that_means_nothing_is_refused_before_peft_sees_it(
    whole: tuple[Path, nn.Module, str], monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    folder, model, digest = whole
    altered_config(folder, **changes)
    monkeypatch.setattr("peft.get_peft_model", unreachable)
    with pytest.raises(ArtifactError, match=message) as caught:
        adapter.merge(model, folder, digest)
    assert str(folder / adapter.CONFIG) in str(caught.value)
    assert "dvc repro" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "[]", "null", "\ud800", '{"r": ' + "9" * 5000 + "}"], ids=lambda text: str(len(text))
)
def test_what_is_no_configuration_is_refused(whole: tuple[Path, nn.Module, str], text: str) -> None:
    folder, model, digest = whole
    (folder / adapter.CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    resealed(folder)
    with pytest.raises(ArtifactError, match=r"adapter_config\.json is no configuration of an adapter \(.+\): run `dvc"):
        adapter.merge(model, folder, digest)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.full((4, 64), float("nan")), "holds NaN or infinity"),
        (torch.zeros(4, 64, dtype=torch.int32), r"is of torch\.int32"),
        (torch.zeros(4, 64).to(torch.float8_e4m3fn), r"is of torch\.float8_e4m3fn"),
        (torch.zeros(5, 64), r"says r = 4, but .* is \[5, 64\]"),
        (torch.zeros(()), r"says r = 4, but .* is \[\]"),
    ],
)
def test_tensors_that_no_adapter_has_are_refused(
    whole: tuple[Path, nn.Module, str], tensor: torch.Tensor, message: str
) -> None:
    folder, model, digest = whole
    found = safetensors.torch.load_file(folder / adapter.WEIGHTS)
    name = next(name for name in found if ".lora_A." in name)
    safetensors.torch.save_file(found | {name: tensor}, folder / adapter.WEIGHTS)
    resealed(folder)
    with pytest.raises(ArtifactError, match=message) as caught:
        adapter.merge(model, folder, digest)
    assert str(folder / adapter.WEIGHTS) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": [adapter.CONFIG, adapter.WEIGHTS]}, r"sha256: .*dictionary"),
        ({"sha256": {adapter.CONFIG: "0" * 64}}, r"sha256\.adapter_model\.safetensors: Field required"),
        ({"sha256": {adapter.CONFIG: 1, adapter.WEIGHTS: None}}, r"sha256\.adapter_config\.json: .*string"),
        ({"weights": ["a"]}, "weights: .*string"),
        ({"change": "1"}, "change: .*number"),
        ({"change": float("nan")}, "change: .*finite"),
        ({"change": None}, "change: "),
    ],
)
def test_a_card_that_means_nothing_is_refused(
    whole: tuple[Path, nn.Module, str], changes: dict[str, object], message: str
) -> None:
    folder, model, digest = whole
    altered_card(folder, **changes)
    with pytest.raises(ArtifactError, match=rf"adapter\.yaml is no card of an adapter \({message}.*\): run `dvc repro"):
        adapter.merge(model, folder, digest)


@pytest.mark.parametrize("name", [adapter.WEIGHTS, adapter.CONFIG])
def test_a_flipped_byte_is_named(name: str, tmp_path: Path) -> None:
    _, digest, state = saved(("scenes-tiny", 96), tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} was altered"):
        adapter.merge(fresh("scenes-tiny", state), tmp_path, digest)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        adapter.merge(fresh("scenes-tiny", state), tmp_path, digest)


def test_attention_that_pools_is_left_out() -> None:
    assert not [name for name in adapter.targets(teacher.create("RN50")) if "attnpool" in name]


def test_a_tower_without_attention_and_convolution_is_refused() -> None:
    model = nn.Module()
    model.visual = nn.Linear(2, 2)
    with pytest.raises(TeacherError, match="image tower has no attention"):
        adapter.targets(model)
