from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import CLASSES, COMPUTE, STUDENT, Toy, make_table

from clipdistill.students import classifier, model_folder, preprocessing, student_yaml
from clipdistill.training.data import ImageSource
from clipdistill.training.predict import predict, predict_scores


@pytest.fixture(scope="module")
def student() -> classifier.Student:
    return classifier.build(STUDENT, len(CLASSES), seed=0)


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
@pytest.mark.parametrize("batch_size", [None, 1, 7, 20])
def test_rows_are_the_scores_of_their_images(
    toy: Toy, student: classifier.Student, head: classifier.Head, batch_size: int | None
) -> None:
    found = predict(student, ImageSource(toy[0], 32, "none", 1), head, torch.float32, batch_size)
    student.eval()
    for row in (0, 7, 19):
        pixels = torch.from_numpy(preprocessing.resize(toy[0].open(row), 32))[None]
        expected = classifier.scores(student(preprocessing.normalise(pixels))[0], head)
        torch.testing.assert_close(found[row], expected[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_student_is_left_as_it_was(toy: Toy, student: classifier.Student, training: bool) -> None:
    student.train(training)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    predict(student, ImageSource(toy[0], 32, "memory", 1), "sigmoid", torch.float32)
    assert student.training == training
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_bf16_is_close_to_fp32(toy: Toy, student: classifier.Student) -> None:
    source = ImageSource(toy[0], 32, "memory", 1)
    exact, fast = (predict(student, source, "sigmoid", dtype) for dtype in (torch.float32, torch.bfloat16))
    torch.testing.assert_close(fast, exact, atol=0.02, rtol=0)


def test_scores_of_a_saved_student(toy: Toy, student: classifier.Student, tmp_path: Path) -> None:
    model_folder.save(tmp_path, student, student_yaml.Card.of(student, STUDENT, "sigmoid", CLASSES, {}))
    scores = predict_scores(tmp_path, toy[0], COMPUTE)
    assert scores.shape == (20, 3)
    assert scores.dtype == np.float32
    again = predict_scores(tmp_path, toy[0], COMPUTE.model_copy(update={"batch_size": 3, "workers": 2}))
    np.testing.assert_allclose(again, scores, atol=0.02)


def test_a_table_without_images(student: classifier.Student, tmp_path: Path) -> None:
    table, _ = make_table(tmp_path / "images", 0)
    found = predict(student, ImageSource(table, 32, "none", 1), "sigmoid", torch.float32)
    assert found.shape == (0, 3)
