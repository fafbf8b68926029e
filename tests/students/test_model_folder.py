from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from clipdistill.errors import ArtifactError
from clipdistill.params import StudentParams
from clipdistill.students import classifier, model_folder, student_yaml

PARAMS = StudentParams(output_stride=32, backbone="shufflenet_v2_x0_5", image_size=64)
CLASSES = ["dog", "potted plant", "café"]


def make(folder: Path, seed: int = 0) -> classifier.Student:
    student = classifier.build(PARAMS, len(CLASSES), seed)
    card = student_yaml.Card.of(student, PARAMS, "sigmoid", CLASSES, {"table": "abc", "recipe": {"seed": seed}})
    model_folder.save(folder, student, card)
    return student


def test_round_trip(tmp_path: Path) -> None:
    student = make(tmp_path)
    loaded, card = model_folder.load(tmp_path)
    assert not loaded.training
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(images)[0], student.eval()(images)[0])
    assert card.classes == CLASSES
    assert card.thresholds == [0.5, 0.5, 0.5]
    assert card.preprocessing.image_size == 64
    assert card.provenance == {"table": "abc", "recipe": {"seed": 0}}
    assert (loaded.weights, card.backbone_weights) == ("none", "none")


def test_equal_students_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(tmp_path / name)
    for name in (student_yaml.WEIGHTS, student_yaml.FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_memory_layout_does_not_matter(tmp_path: Path) -> None:
    student = make(tmp_path / "a")
    card = student_yaml.read(tmp_path / "a")
    model_folder.save(tmp_path / "b", student.to(memory_format=torch.channels_last), card)
    assert (tmp_path / "a" / student_yaml.WEIGHTS).read_bytes() == (tmp_path / "b" / student_yaml.WEIGHTS).read_bytes()


def test_thresholds_can_be_set(tmp_path: Path) -> None:
    student = make(tmp_path)
    card = student_yaml.read(tmp_path).model_copy(update={"thresholds": [0.1, 0.2, 0.3]})
    model_folder.save(tmp_path, student, card)
    assert model_folder.load(tmp_path)[1].thresholds == [0.1, 0.2, 0.3]


def test_an_altered_byte_is_noticed(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / student_yaml.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"student\.safetensors has SHA-256 .*student\.yaml was written for"):
        model_folder.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    student = make(tmp_path)
    with torch.no_grad():
        student.head.bias[1] = value
    model_folder.save(tmp_path, student, student_yaml.read(tmp_path))
    with pytest.raises(ArtifactError, match=r"student\.safetensors holds NaN or infinity \(head\.bias\)"):
        model_folder.load(tmp_path)


def test_weights_of_another_student_are_noticed(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b", seed=1)
    (tmp_path / "a" / student_yaml.WEIGHTS).write_bytes((tmp_path / "b" / student_yaml.WEIGHTS).read_bytes())
    with pytest.raises(ArtifactError, match="SHA-256"):
        model_folder.load(tmp_path / "a")


@pytest.mark.parametrize("name", [student_yaml.WEIGHTS, student_yaml.FILE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        model_folder.load(tmp_path)


def _set(key: str, value: object) -> Callable[[dict[str, object]], None]:
    return lambda card: card.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format_version", 2), "format version 2, this program reads 1"),
        (_set("thresholds", [0.5]), "1 thresholds for 3 classes"),
        (_set("thresholds", [0.5, 0.5, 7.0]), "thresholds.2"),
        (_set("head", "tanh"), "head"),
        (_set("surprise", 1), "surprise"),
        (lambda card: card.pop("classes"), "classes: Field required"),
        (_set("backbone", ""), "backbone: .*at least 1 character"),
        (lambda card: card["preprocessing"].update(image_size=5000), "preprocessing.image_size: .*2048"),
        (lambda card: card["preprocessing"].update(mean=[0.5]), "preprocessing.mean: .*at least 3 items"),
        (lambda card: card["preprocessing"].update(std=[0.2, 0.0, 0.2]), "preprocessing.std.1: .*greater than 0"),
    ],
)
def test_a_card_that_does_not_hold_is_refused(
    tmp_path: Path, change: Callable[[dict[str, object]], None], message: str
) -> None:
    make(tmp_path)
    path = tmp_path / student_yaml.FILE
    card = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(card)
    path.write_text(yaml.safe_dump(card), encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        model_folder.load(tmp_path)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "!!python/object/apply:os.getcwd []", "a: &a 1\nb: *a"])
def test_a_card_that_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    make(tmp_path)
    (tmp_path / student_yaml.FILE).write_text(text)
    with pytest.raises(ArtifactError, match=r"student\.yaml"):
        model_folder.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("head: sigmoid", "head: softmax"),
        ("output_stride: 32", "output_stride: 16"),
        ("boost: 1.0", "boost: 2.0"),
        ("- dog", "- cat"),
        ("image_size: 64", "image_size: 96"),
        ("- 0.229", "- 0.3"),
        ("backbone: shufflenet_v2_x0_5", "backbone: resnet99"),
    ],
)
def test_what_scores_depend_on_cannot_be_edited(tmp_path: Path, old: str, new: str) -> None:
    make(tmp_path)
    path = tmp_path / student_yaml.FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ArtifactError, match=r"student\.yaml was altered: .*copy the folder again"):
        model_folder.load(tmp_path)


def test_weights_of_another_network_are_refused_whatever_they_say(tmp_path: Path) -> None:
    make(tmp_path)
    card = student_yaml.read(tmp_path).model_copy(update={"backbone": "mnasnet0_5"})
    model_folder.save(tmp_path, classifier.build(PARAMS, len(CLASSES), 0), card)
    with pytest.raises(ArtifactError, match="is no mnasnet0_5 for 3 classes"):
        model_folder.load(tmp_path)


def test_a_class_that_stands_twice_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / student_yaml.FILE
    path.write_text(path.read_text().replace("- potted plant", "- dog"))
    with pytest.raises(ArtifactError, match="a class stands there twice"):
        model_folder.load(tmp_path)
