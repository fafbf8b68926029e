import os
import pickle
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


def test_weights_of_another_architecture_are_refused(tiny_weights: Path) -> None:
    with pytest.raises(TeacherError, match="do not fit the architecture"):
        teacher.load(from_file(tiny_weights, model="RN50"))


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


def test_quickgelu_weights_get_a_quickgelu_model(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_two_classes_with_one_prompt_are_refused(tiny_weights: Path) -> None:
    model = teacher.load(ClipParams(), tiny_weights.parent)
    with pytest.raises(ParamsError, match="'fish'"):
        prompts.embed_prompts(model, ["fish", "car", "fish"], ["a {}"])
