import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipdistill import store
from clipdistill.clip import prompts, teacher
from clipdistill.errors import ParamsError, TeacherError
from clipdistill.params import ClipParams


def from_file(path: Path, **changes: object) -> ClipParams:
    settings = {
        "source": "file",
        "model": "scenes-tiny",
        "weights": str(path),
        "sha256": store.file_sha256(path),
    } | changes
    return ClipParams.model_validate(settings)


def test_file_and_self_trained_teachers_are_the_same_model(tiny_weights: Path) -> None:
    own = teacher.load(ClipParams(), tiny_weights.parent)
    local = teacher.load(from_file(tiny_weights))
    assert own.identity == local.identity
    assert own.identity["model"] == "scenes-tiny"
    assert own.preprocessing.size == 64
    assert own.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)


def test_identity_follows_the_weights_not_the_file(tiny_weights: Path, tmp_path: Path) -> None:
    state = load_file(tiny_weights)
    torch.save(state, tmp_path / "same.pt")
    assert teacher.load(from_file(tmp_path / "same.pt")).identity == teacher.load(from_file(tiny_weights)).identity
    state["logit_scale"] = state["logit_scale"] + 1
    save_file(state, tmp_path / "other.safetensors")
    other = teacher.load(from_file(tmp_path / "other.safetensors"))
    assert other.identity["weights"] != teacher.load(from_file(tiny_weights)).identity["weights"]


def test_a_wrong_checksum_names_both(tiny_weights: Path) -> None:
    with pytest.raises(TeacherError, match=rf"{store.file_sha256(tiny_weights)}, expected {'0' * 64}"):
        teacher.load(from_file(tiny_weights, sha256="0" * 64))


def test_missing_weights_are_named(tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"gone\.safetensors are missing"):
        teacher.load(from_file(tiny_weights, weights=str(tmp_path / "gone.safetensors")))


CARDS = ["", "- a", "{}", "architecture: scenes-tiny", "a: [", "sha256: 2001-99-99", "sha256: \0"]


@pytest.mark.parametrize("text", CARDS)
def test_a_card_that_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "scenes.yaml").write_text(text)
    with pytest.raises(TeacherError, match=r"(?s)scenes\.yaml is no card of a teacher .*dvc repro .*pretrain_clip"):
        teacher.load(ClipParams(), tmp_path)


def test_weights_of_another_architecture_are_refused(tiny_weights: Path) -> None:
    with pytest.raises(TeacherError, match="do not fit the architecture"):
        teacher.load(from_file(tiny_weights, model="RN50"))


def test_positions_of_another_size_are_not_stretched_to_fit(tiny_weights: Path, tmp_path: Path) -> None:
    """As open_clip does: a model of 21 tokens would be read as one of 16."""
    state = load_file(tiny_weights)
    save_file(state | {"positional_embedding": torch.randn(21, 64)}, tmp_path / "other.safetensors")
    message = r"do not fit the architecture: positional_embedding is \[21, 64\] in place of \[16, 64\]"
    with pytest.raises(TeacherError, match=message):
        teacher.load(from_file(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("key", "value"), [("token_embedding.weight", float("nan")), ("logit_scale", float("-inf")), ("logit_scale", 1e3)]
)
def test_weights_that_are_not_finite_are_refused(tiny_weights: Path, tmp_path: Path, key: str, value: float) -> None:
    state = load_file(tiny_weights)
    state[key] = torch.full_like(state[key], value)
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(TeacherError, match=rf"hold NaN or infinity \({key}\)"):
        teacher.load(from_file(tmp_path / "nan.safetensors"))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.pt", b""),
        ("a.safetensors", b""),
        ("a.pt", b"<html>not found</html>"),
        ("a.safetensors", b"<html>not found</html>"),
        ("a.npz", b"PK"),
        ("a.pt", b"\x80\x02."),
    ],
)
def test_files_that_are_no_weights_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TeacherError, match=rf"{name} hold more than tensors, or none, .*\.safetensors or \.pt file"):
        teacher.load(from_file(tmp_path / name))


def test_half_a_file_of_weights_is_refused(tiny_weights: Path, tmp_path: Path) -> None:
    torch.save(load_file(tiny_weights), tmp_path / "whole.pt")
    for source in (tiny_weights, tmp_path / "whole.pt"):
        half = tmp_path / f"half{source.suffix}"
        half.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        with pytest.raises(TeacherError, match="hold more than tensors, or none"):
            teacher.load(from_file(half))


@pytest.mark.parametrize("content", [[1, 2], None, {}, {"a": 1}])
def test_what_is_not_tensors_by_name_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(TeacherError, match="hold more than tensors, or none"):
        teacher.load(from_file(tmp_path / "other.pt"))


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_says_what_to_do(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "scripted.pt")
    with pytest.raises(TeacherError, match="a TorchScript archive or a pickled model has to be converted"):
        teacher.load(from_file(tmp_path / "scripted.pt"))


def test_openais_weights_are_refused_without_their_activation() -> None:
    """By their sum, before the file is looked for: without QuickGELU they give features that are merely worse."""
    sha256 = open_clip.get_pretrained_cfg("ViT-B-32", "openai")["url"].split("/")[-2]
    settings = {"source": "file", "weights": "ViT-B-32.pt", "sha256": sha256}
    with pytest.raises(TeacherError, match=r"ViT-B-32\.pt is ViT-B-32.* / openai .* set clip\.quick_gelu: true"):
        teacher.load(ClipParams.model_validate(settings | {"model": "ViT-B-32"}))
    for right in ({"model": "ViT-B-32", "quick_gelu": True}, {"model": "ViT-B-32-quickgelu"}):
        with pytest.raises(TeacherError, match="are missing"):
            teacher.load(ClipParams.model_validate(settings | right))


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_runs_code_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"weight": _Bomb(tmp_path / "ran")}, path, pickle_module=pickle)
    with pytest.raises(TeacherError, match="hold more than tensors"):
        teacher.load(from_file(path))
    assert not (tmp_path / "ran").exists()


def test_unknown_models_and_tags_list_what_is_known() -> None:
    with pytest.raises(TeacherError, match="open_clip knows no 'RN51'"):
        teacher.load(ClipParams(source="open_clip", model="RN51", pretrained="openai"))
    with pytest.raises(TeacherError, match=r"no weights 'opnai', only .*openai"):
        teacher.load(ClipParams(source="open_clip", model="RN50", pretrained="opnai"))


def test_a_missing_self_trained_teacher_says_which_stage_makes_it(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="pretrain_clip"):
        teacher.load(ClipParams(), tmp_path)


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A download as the hub keeps it: under the SHA-256 that it publishes, with a link that has the file's name."""
    content = b"weights"
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    link = tmp_path / "snapshots" / "main" / "open_clip_model.safetensors"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_bytes(content)
    link.symlink_to(blob)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(link))
    return blob


def test_a_download_that_is_not_what_was_published_is_refused(downloaded: Path) -> None:
    downloaded.write_bytes(b"something else")
    with pytest.raises(TeacherError, match=rf"expected {downloaded.name}: a broken download"):
        teacher.load(ClipParams(source="open_clip", model="ViT-B-32", pretrained="openai"))


def test_a_download_is_compared_with_the_sum_of_the_parameters(downloaded: Path) -> None:
    with pytest.raises(TeacherError, match=rf"SHA-256 {downloaded.name}, expected {'0' * 64}"):
        teacher.load(ClipParams(source="open_clip", model="ViT-B-32", pretrained="openai", sha256="0" * 64))


def test_a_tokenizer_that_cannot_be_fetched_is_named(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "get_tokenizer", refuse)
    with pytest.raises(TeacherError, match=r"tokenizer of scenes-tiny .*no route to host"):
        teacher.load(from_file(tiny_weights))


def test_quickgelu_weights_get_a_quickgelu_model(downloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    real = open_clip.create_model

    def fake(name: str, **kwargs: object) -> torch.nn.Module:
        asked.update(kwargs)
        model: torch.nn.Module = real(name, force_quick_gelu=bool(kwargs["force_quick_gelu"]))
        return model

    monkeypatch.setattr(open_clip, "create_model", fake)
    loaded = teacher.load(ClipParams(source="open_clip", model="ViT-B-32", pretrained="openai"))
    assert asked["force_quick_gelu"] is True
    assert loaded.identity["quick_gelu"] is True


def test_prompts_are_averaged_and_renormalised(tiny_weights: Path) -> None:
    model = teacher.load(ClipParams(), tiny_weights.parent)
    names, templates = ["fish", "red car"], ["a photo of a {}.", "a {}"]
    embedding = prompts.embed_prompts(model, names, templates)
    assert embedding.shape == (2, 64)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    with torch.inference_mode():
        single = [model.model.encode_text(model.tokenizer([t.format("red car")]))[0] for t in templates]
    mean = sum(vector / vector.norm() for vector in single)
    torch.testing.assert_close(embedding[1], mean / mean.norm(), atol=1e-5, rtol=0)


def test_a_prompt_that_the_tokenizer_would_cut_is_refused(tiny_weights: Path) -> None:
    model = teacher.load(ClipParams(), tiny_weights.parent)
    with pytest.raises(ParamsError, match="does not fit into the 16 tokens"):
        prompts.embed_prompts(model, ["fish", "very " * 20 + "big fish"], ["a {}"])


def test_a_cut_is_seen_whatever_the_tokenizer_pads_with(tiny_weights: Path) -> None:
    """Some pad with the mark that ends a text, which then stands last in a cut text and in a short one."""

    def tokenizer(texts: list[str]) -> torch.Tensor:
        rows = [[*map(ord, text[:15]), 0] for text in texts]
        return torch.tensor([row + [0] * (16 - len(row)) for row in rows])

    model = replace(teacher.load(ClipParams(), tiny_weights.parent), tokenizer=tokenizer)
    assert prompts.embed_prompts(model, ["fourteen chars", "short"], ["{}"]).shape == (2, 64)
    with pytest.raises(ParamsError, match="'more than fifteen' does not fit into the 16 tokens"):
        prompts.embed_prompts(model, ["short", "more than fifteen"], ["{}"])


@pytest.mark.parametrize(
    "twins", [("fish", "fish"), ("TV", "tv"), ("caf\u00e9", "cafe\u0301"), ("hot  dog", "hot dog"), ("a&amp;b", "a&b")]
)
def test_two_classes_with_one_prompt_are_refused(tiny_weights: Path, twins: tuple[str, str]) -> None:
    model = teacher.load(ClipParams(), tiny_weights.parent)
    with pytest.raises(ParamsError, match=f"the classes prompted '{twins[0]}' and '{twins[1]}' are the same"):
        prompts.embed_prompts(model, [twins[0], "car", twins[1]], ["a {}", "one {}"])


def test_a_lone_class_is_refused(tiny_weights: Path) -> None:
    model = teacher.load(ClipParams(), tiny_weights.parent)
    with pytest.raises(ParamsError, match="there is one class, 'fish'"):
        prompts.embed_prompts(model, ["fish"], ["a {}"])
