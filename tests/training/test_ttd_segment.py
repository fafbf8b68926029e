"""Segmentation of a small data set from its files to its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipdistill.clip import teacher
from clipdistill.clip.segment import Look, Segmenter, class_text
from clipdistill.clip.teacher import Teacher
from clipdistill.datasets.masks.readers import read_masked
from clipdistill.distributed import Compute
from clipdistill.errors import DataError
from clipdistill.evaluation.segmentation import Confusion, segmentation_figures, with_background
from clipdistill.params import Params
from clipdistill.training.ttd_segment import check_masked, segment, training_rows

COMPUTE = Compute(device="cpu", threads=1, workers=1)
CLASSES = "background\nred ball\nblue box\n"


@pytest.fixture(scope="module")
def clip() -> Teacher:
    teacher.register_architectures()
    torch.manual_seed(0)
    model = teacher.create("scenes-tiny").requires_grad_(False)
    own = teacher.preprocessing_of(model)
    return Teacher(model, open_clip.get_tokenizer("scenes-tiny"), own, 1.0, {"model": "scenes-tiny"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven images to evaluate, three to choose the background on; the last of each shows no class."""
    rng = np.random.default_rng(0)
    (tmp_path / "classes.txt").write_text(CLASSES)
    for split, count in (("val", 7), ("train", 3)):
        for part in ("images", "masks"):
            (tmp_path / split / part).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (40, 50 + number, 3), dtype=np.uint8)
            mask = (
                rng.choice([0, 1, 2, 255], (4, 5)).astype(np.uint8)
                if number < count - 1
                else np.zeros((4, 5), np.uint8)
            )
            Image.fromarray(pixels).save(tmp_path / split / "images" / f"{number}.png")
            large = Image.fromarray(mask).resize((50 + number, 40), Image.Resampling.NEAREST)
            large.save(tmp_path / split / "masks" / f"{number}.png")
    return tmp_path


def params_of(root: Path, **changes: Any) -> Params:  # noqa: ANN401
    wanted = {"reader": "folder", "root": str(root), "image_size": 64, "window": 64, "stride": 32, "scales": [1.0]}
    given = wanted | {"flip": False, "pamr": 1, "train_images": 2} | changes
    return Params.model_validate({"clip": {"precision": "fp32"}, "ttd": {"segment": given, "slope": 2.0, "shift": 0.0}})


def test_the_background_is_the_best_of_its_curve_and_the_figures_are_of_it(
    root: Path, clip: Teacher, tmp_path: Path
) -> None:
    params = params_of(root)
    found = segment(params, clip, COMPUTE, tmp_path / "pictures")
    choice = found.pop("choice")
    assert choice["images"] == 2
    assert choice["mIoU"][f"{found['background']:.2f}"] == max(choice["mIoU"].values())
    assert found["images"] == 7
    assert list(found["IoU"]) == ["background", "red ball", "blue box"]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [f"{number}.png" for number in range(6)]
    assert Image.open(tmp_path / "pictures" / "1.png").size == (3 * 51 + 8, 40)
    # The same, image by image.
    data = read_masked(params.ttd.segment, "val", 10**6)
    text = class_text(clip, data.prompts, params.prompts.templates)
    segmenter = Segmenter(clip, Look.of(params.ttd, clip), "fp32", torch.device("cpu"))
    confusion = Confusion(3)
    for row in range(7):
        image, mask = data.open(row)
        confusion.add(with_background(*segmenter.best(image, text), found["background"]), torch.from_numpy(mask))
    assert segmentation_figures(confusion.counts, data.labels, 7, found["background"]) == found


def test_every_mask_that_is_going_to_be_read_is_opened_first(root: Path) -> None:
    check_masked(params_of(root), COMPUTE)
    unread = next(row for row in range(3) if row not in training_rows(3, 2))
    for split, number, refused in (("train", unread, False), ("train", training_rows(3, 2)[0], True), ("val", 6, True)):
        mask = root / split / "masks" / f"{number}.png"
        good = mask.read_bytes()
        mask.write_bytes(good[:50])
        if refused:
            with pytest.raises(DataError, match=f"{split}/masks/{number}.png"):
                check_masked(params_of(root), COMPUTE)
        else:
            check_masked(params_of(root), COMPUTE)
        mask.write_bytes(good)


def test_a_background_that_is_given_needs_no_training_images(root: Path, clip: Teacher, tmp_path: Path) -> None:
    found = segment(params_of(root, background=1.0, train="nowhere"), clip, COMPUTE, tmp_path / "pictures")
    assert found["background"] == 1.0
    assert "choice" not in found
    assert found["IoU"]["red ball"] == 0
    again = segment(params_of(root, background=1.0, train="nowhere"), clip, COMPUTE, tmp_path / "pictures")
    assert again == found


def test_a_data_set_without_a_background_has_none(root: Path, clip: Teacher, tmp_path: Path) -> None:
    (root / "classes.txt").write_text("ground\nred ball\nblue box\n")
    found = segment(params_of(root), clip, COMPUTE, tmp_path / "pictures")
    assert found["background"] is None
    assert list(found["IoU"]) == ["ground", "red ball", "blue box"]
    assert "choice" not in found


def test_masks_without_a_class_choose_nothing(root: Path, clip: Teacher, tmp_path: Path) -> None:
    for path in (root / "train" / "masks").iterdir():
        Image.new("L", Image.open(path).size, 255).save(path)
    with pytest.raises(DataError, match=r"ttd\.segment\.background: every pixel of the training masks is ignored"):
        segment(params_of(root), clip, COMPUTE, tmp_path / "pictures")


def test_rows_that_choose_the_background() -> None:
    assert training_rows(5, 9) == [0, 1, 2, 3, 4]
    some = training_rows(1000, 50)
    assert some == training_rows(1000, 50) == sorted(set(some))
    assert len(some) == 50
    assert set(training_rows(1000, 20)) < set(some)
