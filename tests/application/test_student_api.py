import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clipdistill
from clipdistill import Student
from clipdistill.datasets.images import UnreadableImageError
from clipdistill.errors import ArtifactError, ParamsError
from training.toy_training import CLASSES, Toy


@pytest.fixture(scope="module")
def student(model: Path) -> Student:
    return Student.load(model, device="cpu")


def test_paths_images_and_arrays_are_scored_alike(student: Student, toy: Toy) -> None:
    path = toy[0].root / toy[0].paths[5]
    picture = Image.open(path)
    found = student.predict([path, str(path), picture, np.asarray(picture)])
    assert found.scores.shape == (4, 3)
    assert found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores, found.scores[[0]].repeat(4, axis=0), atol=1e-6)
    np.testing.assert_allclose(student.predict(path).scores, found.scores[:1], atol=1e-6)


def test_names_are_those_from_their_threshold_on_the_surest_first(student: Student, toy: Toy) -> None:
    found = student.predict(toy[0].root / name for name in toy[0].paths)
    assert found.classes == tuple(CLASSES)
    assert (found.present == (found.scores >= found.thresholds)).all()
    for names, scores, present in zip(found.names, found.scores, found.present, strict=True):
        order = [CLASSES[c] for c in np.argsort(-scores) if present[c]]
        assert names == order
    assert [len(classes) for classes in found.ranked(top_k=2)] == [2] * 24


def test_no_images_give_an_empty_prediction(student: Student) -> None:
    found = student.predict([])
    assert found.scores.shape == (0, 3)
    assert found.names == []


def test_maps_average_to_the_logits(student: Student, toy: Toy) -> None:
    scores, maps = student.look(toy[0].root / toy[0].paths[0])
    np.testing.assert_allclose(torch.sigmoid(torch.from_numpy(maps).mean(dim=(1, 2))), scores, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", r"nowhere\.png: cannot be read"),
        (np.zeros((4, 4, 5), np.uint8), r"uint8 \[4, 4, 5\]"),
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\]"),
        (b"bytes", "but is bytes"),
        (None, "but is NoneType"),
        (5, "but is int"),
    ],
)
def test_what_is_no_image_is_named(student: Student, image: object, message: str) -> None:
    for images in ([image], image):
        with pytest.raises(UnreadableImageError, match=message):
            student.predict(images)  # type: ignore[arg-type]


def test_an_array_with_an_alpha_channel_is_taken_as_a_picture_with_one_is(student: Student, toy: Toy) -> None:
    picture = Image.open(toy[0].root / toy[0].paths[5]).convert("RGBA")
    found = student.predict([picture, np.asarray(picture), np.asarray(picture.convert("RGB"))]).scores
    np.testing.assert_allclose(found, found[[0]].repeat(3, axis=0), atol=1e-6)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"workers": 0}])
def test_a_count_below_one_is_refused(student: Student, toy: Toy, settings: dict[str, int]) -> None:
    with pytest.raises(ParamsError, match=f"{next(iter(settings))} must be at least 1, but is 0"):
        student.predict(toy[0].root / toy[0].paths[0], **settings)


def test_one_threshold_may_stand_for_all(student: Student, toy: Toy) -> None:
    scores = student.predict(toy[0].root / toy[0].paths[0]).scores
    assert (student.prediction(scores, 0.3).present == (scores >= 0.3)).all()


def test_a_student_shows_what_it_is(student: Student) -> None:
    assert repr(student) == "Student(shufflenet_v2_x0_5, 3 classes, 32 pixels, cpu)"


def test_a_wrong_folder_or_device_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is missing"):
        Student.load(tmp_path)
    with pytest.raises(ParamsError, match="'tpu'"):
        Student.load(model, device="tpu")


def test_importing_the_package_imports_nothing_heavy() -> None:
    probe = "import sys, clipdistill; sys.exit(bool({'torch', 'zarr', 'pydantic', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_the_package_has_no_other_names() -> None:
    assert {"Student", "Prediction"} <= set(clipdistill.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Teacher'"):
        clipdistill.Teacher  # noqa: B018


def test_a_stack_of_images_is_so_many(student: Student, toy: Toy) -> None:
    stack = np.stack([np.asarray(Image.open(toy[0].root / name).convert("RGB")) for name in toy[0].paths[:3]])
    found = student.predict(stack)
    np.testing.assert_allclose(found.scores, student.predict(list(stack)).scores, atol=1e-6)
    assert found.scores.shape == (3, 3)


def test_what_makes_no_sense_is_refused_by_name(student: Student, toy: Toy) -> None:
    with pytest.raises(ParamsError, match="a model folder is a path, but NoneType"):
        Student.load(None)  # type: ignore[arg-type]
    found = student.predict(toy[0].root / toy[0].paths[0])
    for count in (0, -1):
        with pytest.raises(ParamsError, match="top_k must be at least 1"):
            found.ranked(count)
