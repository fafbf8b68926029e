"""A student of open vocabulary at work: from Python and from the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from command_run import Run
from PIL import Image

from clipdistill import OpenStudent, Student
from clipdistill.clip import open_folder, teacher
from clipdistill.datasets.table import ClassName
from clipdistill.errors import ParamsError
from clipdistill.students import context
from clipdistill.students.open_card import OpenCard

LABELS = ["red fish", "house", "blue car"]


def write(folder: Path, **changes: object) -> Path:
    """An untrained student."""
    torch.manual_seed(0)
    teacher.register_architectures()
    model = teacher.create("scenes-tiny")
    own = teacher.preprocessing_of(model)
    prompt = "a photo of a {}."
    card = OpenCard.model_validate(
        {
            "model": "scenes-tiny",
            "quick_gelu": False,
            "backbone": "clip",
            "backbone_weights": "clip",
            "image_size": 64,
            "mean": list(own.mean),
            "std": list(own.std),
            "prompt": prompt,
            "tuned": False,
            "k": 1,
            "norm": "cosine",
            "local": 0.5,
            "scale": 100.0,
            "shift": 0.0,
            "seen": ["tree", "boat"],
            "provenance": {},
        }
        | changes
    )
    first = context.first_context(model, teacher.open_clip.get_tokenizer("scenes-tiny"), prompt)
    open_folder.save(folder, open_folder.OpenStudent(model, first, card))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("open"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def test_it_is_asked_for_any_labels_and_by_default_for_its_own(folder: Path, photo: Path) -> None:
    found = OpenStudent.load(folder, LABELS, "cpu").predict(photo)
    assert (found.classes, found.scores.shape) == (tuple(LABELS), (1, 3))
    assert set(found.thresholds) == {0.5}
    alone = OpenStudent.load(folder, LABELS[1:2], "cpu").predict(photo)
    np.testing.assert_allclose(alone.scores[:, 0], found.scores[:, 1], atol=1e-6)
    assert OpenStudent.load(folder, device="cpu").classes == ("tree", "boat")


def test_scores_far_from_the_shift_are_still_told_apart(tmp_path: Path, photo: Path) -> None:
    """At a scale of 100 a sigmoid is 1 in float32 from 0.17 above the shift on, and ties go by column."""
    words = ["fish", "car", "house", "tree", "cup", "key", "clock", "boat"]
    near = OpenStudent.load(write(tmp_path / "near"), words, "cpu")
    far = OpenStudent.load(write(tmp_path / "far", shift=-0.6), words, "cpu")
    order = [name for name, _ in near.predict(photo).ranked(8)[0]]
    scores = far.predict(photo).scores
    assert len(np.unique(scores)) == len(words)
    assert [name for name, _ in far.prediction(scores).ranked(8)[0]] == order


def test_its_maps_are_the_cosines_of_the_patches(folder: Path, photo: Path) -> None:
    scores, maps = OpenStudent.load(folder, LABELS, "cpu").look(photo)
    assert (scores.shape, maps.shape) == ((3,), (3, 2, 2))
    assert (np.abs(maps) <= 1 + 1e-6).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("red fish", "list of at least one, not str"),
        ([], "list of at least one"),
        ({"a", "b"}, "not set"),
        ([1], "a label is a text, but 1 is none"),
        (["a", "a"], "'a' stands there more than once"),
        ([ClassName("one", "red fish"), ClassName("two", "red fish")], "two labels are prompted 'red fish'"),
        (["Red", "red"], "are the same to the text encoder"),
        (["fish <end_of_text> dog"], "holds a mark of the text encoder's own"),
        (["word " * 200], r"label 'word word.{0,60}' does not fit"),
    ],
)
def test_labels_that_cannot_be_asked_for_are_named(folder: Path, labels: object, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        OpenStudent.load(folder, labels, "cpu")  # type: ignore[arg-type]


def test_scores_that_a_list_decides_need_a_list(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="ask for two at least"):
        OpenStudent.load(write(tmp_path / "label", norm="label"), ["fish"], "cpu")


def test_each_kind_of_student_says_how_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"is asked for labels: .*OpenStudent\.load"):
        Student.load(folder)
    (tmp_path / "student.yaml").write_text("{}")
    with pytest.raises(ParamsError, match=r"clipdistill\.Student\.load"):
        OpenStudent.load(tmp_path, LABELS)


def test_the_commands(folder: Path, photo: Path, tmp_path: Path, run: Run) -> None:
    words = tmp_path / "words.txt"
    words.write_text("small fish\tred fish\nhouse\n")
    asked = run("predict", folder, photo, "--labels", words, "--top-k", "2", "--format", "csv")
    assert {row["class"] for row in csv.DictReader(asked.out.splitlines())} == {"small fish", "house"}
    drawn = run("heatmap", folder, photo, "--class", "a very red fish", "--out", tmp_path / "map.png")
    assert drawn.out.startswith("a very red fish ")
    assert Image.open(tmp_path / "map.png").size == (70, 50)
    missing = run("predict", folder, photo, "--labels", tmp_path / "none.txt")
    assert (missing.code, "none.txt is missing" in missing.err) == (3, True)
