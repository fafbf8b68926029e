"""Pictures of an update, from small hand-made artifacts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_training import CLASSES, STUDENT, compute_here_on_one_thread, contents, make_table

from clipdistill import store
from clipdistill.datasets.table import ClassName, ImageTable, write_classes, write_labels
from clipdistill.errors import ArtifactError
from clipdistill.evaluation import view_picture
from clipdistill.params import CcdLocalizeParams, CcdParams, Params, PseudoLabelParams
from clipdistill.stage import Paths
from clipdistill.students import classifier, model_folder, student_yaml
from clipdistill.training import ccd_pictures
from clipdistill.training.ccd_labels import CcdLabels
from clipdistill.training.data import ImageSource
from clipdistill.training.localize import PointedViews, Pointer

IMAGES = 10
PARAMS = Params(
    pseudo_label=PseudoLabelParams(temperature=0.5),
    ccd=CcdParams(localize=CcdLocalizeParams(image_size=64, output_stride=32)),
)
TEACHER = {"model": "toy", "weights": "none", "quick_gelu": False}
PATHS = Paths(PARAMS.dataset.name)

# Views of the images; how far each image's label moves: the fifth one farthest, the first one not at all.
COUNTS = np.array([0, 1, 3, 0, 2, 1, 1, 2, 0, 1])
MOVES = torch.tensor([0.0, 0.3, 0.6, 0.1, 0.9, 0.2, 0.8, 0.4, 0.5, 0.7])
OFFSET = np.concatenate([[0], np.cumsum(COUNTS)])
VIEWS = int(OFFSET[-1])
IDS = ["train/a b.jpg", *(f"{row}" for row in range(1, IMAGES))]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageTable:
    """Everything that the pictures are made from, below the present folder."""
    compute_here_on_one_thread(tmp_path, monkeypatch)
    made, truth = make_table(tmp_path / "images", IMAGES)
    made.ids[:] = IDS
    truth[2] = -1
    classes = [ClassName(name, name) for name in CLASSES]
    made.write(PATHS.table("train"))
    write_classes(PATHS.classes, classes)
    write_labels(PATHS.ground_truth("train"), truth, made, classes)
    _write_rounds(made)
    _write_embeddings(made)
    return made


def _write_rounds(table: ImageTable) -> None:
    labels = torch.full((IMAGES, 3), 0.05)
    others = {"raw": labels[None], "bias": torch.ones(3), "weight": torch.ones(IMAGES)}
    for update in (0, 1):
        moved = labels + update * torch.stack([MOVES, *torch.zeros(2, IMAGES)], dim=1)
        CcdLabels(moved, **others).write(PATHS.ccd_labels(update), table, update)
    student = classifier.build(STUDENT, 3, seed=0)
    card = student_yaml.Card.of(student, STUDENT, "sigmoid", CLASSES, {})
    model_folder.save(PATHS.ccd_student(0), student, card)
    generator = np.random.default_rng(0)
    box = np.tile(np.array([[1, 2, 20, 25]], dtype=np.float32), (VIEWS, 1))
    box[:, 2] += np.arange(VIEWS)
    category = (np.arange(VIEWS) % 3).astype(np.int32)
    probability = generator.random(VIEWS, dtype=np.float32)
    PointedViews(box, OFFSET, category, probability, 0.1).write(PATHS.cam_views, {"table": table.fingerprint})


def _write_embeddings(table: ImageTable) -> None:
    """View v looks exactly like class v // 2 of the three."""
    text = np.eye(3, 4, dtype=np.float32)
    store.write_group(PATHS.text, {"embedding": text}, {**TEACHER, "logit_scale": 100.0})
    looks = text[np.arange(VIEWS) // 2 % 3].astype(np.float16)
    provenance = {"table": table.fingerprint, **TEACHER}
    store.write_group(PATHS.embeddings("train", "cam"), {"embedding": looks, "offset": OFFSET}, provenance)


def draw(out: Path, patch: pytest.MonkeyPatch) -> list[view_picture.Story]:
    """Draw, and take down what the pictures tell."""
    told: list[view_picture.Story] = []
    picture = view_picture.draw

    def watched(image: Image.Image, story: view_picture.Story) -> Image.Image:
        told.append(story)
        return picture(image, story)

    with patch.context() as context:
        context.setattr(view_picture, "draw", watched)
        ccd_pictures.draw(PARAMS, out)
    return told


def test_pictures_from_the_farthest_move_to_the_least(
    table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = draw(tmp_path / "out", monkeypatch)
    assert len(told) == 8
    order = [IDS[row] for row in torch.argsort(MOVES, descending=True).tolist()]
    ranks = [order.index(story.title) for story in told]
    assert ranks == sorted(set(ranks))
    assert (ranks[0], ranks[-1]) == (0, 9)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[0] == "1-4.png"
    assert names[-1] == "8-train_a_b_jpg.png"


def test_a_picture_tells_what_the_artifacts_say(
    table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {story.title: story for story in draw(tmp_path / "out", monkeypatch)}
    views = store.read_group(PATHS.cam_views)
    pointer = Pointer(PATHS.ccd_student(0), PARAMS.ccd.localize, ccd_pictures.distributed.Compute.load())
    own, others = np.exp(2) / (np.exp(2) + 2), 1 / (np.exp(2) + 2)
    for title, story in told.items():
        row = IDS.index(title)
        assert story.before == pytest.approx(dict.fromkeys(CLASSES, 0.05))
        assert story.after == pytest.approx({"red": 0.05 + MOVES[row].item(), "green": 0.05, "blue": 0.05})
        probabilities = [view.probability for view in story.views]
        assert probabilities == sorted(probabilities, reverse=True)
        wanted = range(int(OFFSET[row]), int(OFFSET[row + 1]))
        assert sorted(probabilities) == pytest.approx(sorted(views.read("probability")[wanted].tolist()))
        for view in story.views:
            number = int(np.flatnonzero(views.read("probability") == np.float32(view.probability))[0])
            assert view.box == (1, 2, 20 + number, 25)
            assert view.name == CLASSES[number % 3]
            assert view.answer[0] == (CLASSES[number // 2 % 3], pytest.approx(own))
            assert [score for _, score in view.answer[1:]] == pytest.approx([others] * 2)
            source = ImageSource(table, 64, "none", 1)
            (cam,) = pointer.maps(source, torch.tensor([row]), torch.tensor([number % 3]))
            np.testing.assert_allclose(view.cam, cam[0].numpy(), atol=1e-6)


def test_truth_is_told_where_it_is_known(table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {story.title: story for story in draw(tmp_path / "out", monkeypatch)}
    assert told["2"].truth is None
    _, truth = make_table(tmp_path / "again", IMAGES)
    assert told["4"].truth == [CLASSES[column] for column in np.flatnonzero(truth[4])]
    for title, story in told.items():
        assert (story.truth is None) == (title == "2")


def test_equal_artifacts_give_equal_pictures(table: ImageTable, tmp_path: Path) -> None:
    for name in ("a", "b"):
        ccd_pictures.draw(PARAMS, tmp_path / name)
    assert len(contents(tmp_path / "a")) == 8
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_answers_of_another_clip_are_refused(table: ImageTable, tmp_path: Path) -> None:
    provenance = {"table": table.fingerprint, **TEACHER, "model": "other"}
    arrays = {"embedding": np.ones((VIEWS, 4), dtype=np.float16), "offset": OFFSET}
    store.write_group(PATHS.embeddings("train", "cam"), arrays, provenance)
    with pytest.raises(ArtifactError, match="model = 'other'"):
        ccd_pictures.draw(PARAMS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
