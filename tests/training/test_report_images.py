"""The images of the report, from small hand-made artifacts and untrained students."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_training import CLASSES, STUDENT, compute_here_on_one_thread, make_table

from clipdistill import distributed, store
from clipdistill.datasets.images import UnreadableImageError
from clipdistill.datasets.table import ClassName, ImageTable, write_classes, write_labels
from clipdistill.evaluation import gallery
from clipdistill.params import CcdLocalizeParams, CcdParams, Params
from clipdistill.stage import Paths
from clipdistill.students import classifier, model_folder, student_yaml, untrained
from clipdistill.training import report_images
from clipdistill.training.data import ImageSource
from clipdistill.training.localize import Pointer

IMAGES = 30
# CCD's student has thresholds of its own; the CDUL one is as a prediction without any.
OWN = np.array([0.2, 0.5, 0.9])
PARAMS = Params(ccd=CcdParams(localize=CcdLocalizeParams(image_size=64, output_stride=32)))
PATHS = Paths(PARAMS.dataset.name)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageTable:
    """Everything that the gallery is made from, below the present folder: two students, and CLIP itself."""
    compute_here_on_one_thread(tmp_path, monkeypatch)
    made, truth = make_table(tmp_path / "images", IMAGES)
    made.ids[3] = """an "image" it's"""
    classes = [ClassName(name, name) for name in CLASSES]
    made.write(PATHS.table("val"))
    write_classes(PATHS.classes, classes)
    write_labels(PATHS.ground_truth("val"), truth, made, classes)
    for number, method in enumerate(("cdul", "ccd")):
        student = classifier.build(STUDENT, 3, seed=number)
        card = student_yaml.Card.of(student, STUDENT, "sigmoid", CLASSES, {})
        model_folder.save(PATHS.student(method), student, card)
    for number, method in enumerate(("teacher", "cdul", "ccd")):
        scores = np.random.default_rng(number).random(truth.shape, dtype=np.float32)
        arrays: dict[str, store.Array] = {"scores": scores} | ({"thresholds": OWN} if method == "ccd" else {})
        store.write_group(PATHS.predictions(method), arrays, {"table": made.fingerprint})
    reason = {"table": made.fingerprint, "untrained": "no ground truth"}
    store.write_group(PATHS.predictions("supervised"), {"scores": np.empty((0, 0), np.float32)}, reason)
    untrained.mark(PATHS.student("supervised"), "no ground truth")
    return made


def collect() -> gallery.Gallery:
    found = report_images.collect(PARAMS)
    assert found is not None
    return found


def test_images_tags_and_maps_are_those_of_the_artifacts(table: ImageTable) -> None:
    found = collect()
    assert (found.judge, found.methods, found.truth_known) == ("ccd", ["teacher", "cdul", "ccd"], True)
    truth = store.read_group(PATHS.ground_truth("val")).read("labels")
    scores = {method: store.read_group(PATHS.predictions(method)).read("scores") for method in found.methods}
    assert (found.own, found.threshold) == (["ccd"], 0.5)
    thresholds = {method: OWN if method == "ccd" else np.full(3, 0.5) for method in found.methods}
    wanted = gallery.choose(scores["ccd"], truth, OWN)
    assert {group.title: [table.ids.index(p.title) for p in group.pictures] for group in found.groups} == wanted
    pointer = Pointer(PATHS.student("cdul"), PARAMS.ccd.localize, distributed.Compute.load())
    source = ImageSource(table, 64, "none", 1)
    for picture in (picture for group in found.groups for picture in group.pictures):
        row = table.ids.index(picture.title)
        assert picture.file == table.paths[row]
        assert Image.open(io.BytesIO(picture.thumbnail)).size == (picture.width, picture.height) == (40, 30)
        for method, said in picture.said.items():
            assert said.tags == gallery.tags(scores[method][row], truth[row], CLASSES, thresholds[method]).tags
            assert set(said.heat) == (set() if method == "teacher" else {tag.column for tag in said.tags})
    tag = picture.said["cdul"].tags[0]
    (cam,) = pointer.maps(source, torch.tensor([row]), torch.tensor([tag.column]))
    # Alone or in a batch, the last bit of a map may differ.
    drawn, alone = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), dtype=np.int16)
        for data in (picture.said["cdul"].heat[tag.column], gallery.heatmap(cam[0].numpy(), tag.score))
    )
    assert np.abs(drawn - alone).max() <= 8


def test_equal_artifacts_give_equal_galleries(table: ImageTable) -> None:
    assert collect() == collect()


def test_without_a_student_the_teacher_chooses(table: ImageTable) -> None:
    for method in ("cdul", "ccd"):
        shutil.rmtree(PATHS.predictions(method))
    found = collect()
    assert (found.judge, found.methods) == ("teacher", ["teacher"])
    assert not any(said.heat for group in found.groups for p in group.pictures for said in p.said.values())


def test_without_scores_there_is_no_gallery(table: ImageTable) -> None:
    for method in ("teacher", "cdul", "ccd"):
        shutil.rmtree(PATHS.predictions(method))
    assert report_images.collect(PARAMS) is None


def test_without_ground_truth_there_are_predicted_tags_alone(table: ImageTable) -> None:
    unknown = np.full((IMAGES, 3), -1, dtype=np.int8)
    write_labels(PATHS.ground_truth("val"), unknown, table, [ClassName(name, name) for name in CLASSES])
    found = collect()
    assert not found.truth_known
    kinds = {tag.kind for g in found.groups for p in g.pictures for said in p.said.values() for tag in said.tags}
    assert kinds == {"predicted", "below"}


def test_a_student_that_predicts_nothing_anywhere_has_maps_of_its_likeliest(table: ImageTable) -> None:
    quiet = np.full((IMAGES, 3), 0.1, dtype=np.float32)
    store.write_group(PATHS.predictions("ccd"), {"scores": quiet}, {"table": table.fingerprint})
    said = [p.said["ccd"] for group in collect().groups for p in group.pictures]
    assert all(each.tags and set(each.heat) == {tag.column for tag in each.tags} for each in said)


def test_an_image_that_changed_is_named(table: ImageTable) -> None:
    for path in table.paths:
        (table.root / path).write_bytes(b"")
    with pytest.raises(UnreadableImageError, match=r"bytes have changed"):
        collect()
