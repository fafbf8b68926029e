"""Which images are shown, with which tags, and how small their pictures are."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from clipdistill.evaluation import gallery

NAMES = ["a", "b", "c"]


def at(classes: int, threshold: float = 0.5) -> gallery.Thresholds:
    return np.full(classes, threshold)


def test_images_are_chosen_by_their_distance_from_the_ground_truth() -> None:
    truth = np.tile(np.array([[1, 0]], dtype=np.int8), (60, 1))
    order = np.random.default_rng(0).permutation(60)
    scores = np.zeros((60, 2), dtype=np.float32)
    scores[:, 0] = 1 - order / 60
    chosen = gallery.choose(scores, truth, at(2))
    assert list(chosen) == ["Best", "In the middle", "Worst"]
    assert order[chosen["Best"]].tolist() == list(range(8))
    assert order[chosen["In the middle"]].tolist() == list(range(26, 34))
    assert order[chosen["Worst"]].tolist() == list(range(59, 51, -1))


def test_an_image_without_objects_or_labels_is_no_success() -> None:
    truth = np.array([[0, 0], [-1, -1], [1, 0], [1, -1]], dtype=np.int8)
    chosen = gallery.choose(np.zeros((4, 2), dtype=np.float32), truth, at(2))
    assert sorted(row for part in chosen.values() for row in part) == [2, 3]


def test_only_known_labels_count() -> None:
    truth = np.array([[1, -1], [1, 0], [1, 0]], dtype=np.int8)
    scores = np.array([[0.95, 0.9], [0.9, 0.1], [0.5, 0.9]], dtype=np.float32)
    chosen = gallery.choose(scores, truth, at(2))
    assert chosen == {"Best": [0], "In the middle": [1], "Worst": [2]}


@pytest.mark.parametrize("images", [1, 2, 5, 23, 24, 25])
def test_fewer_images_than_places_are_shown_once_each(images: int) -> None:
    generator = np.random.default_rng(images)
    truth = np.ones((images, 3), dtype=np.int8)
    chosen = gallery.choose(generator.random((images, 3), dtype=np.float32), truth, at(3))
    rows = [row for part in chosen.values() for row in part]
    assert len(rows) == len(set(rows)) == min(images, 24)


def test_without_ground_truth_images_are_chosen_by_how_decided_they_are() -> None:
    scores = np.array([[0.99, 0.01], [0.6, 0.4], [0.01, 0.02], [0.9, 0.2]], dtype=np.float32)
    chosen = gallery.choose(scores, np.full((4, 2), -1, dtype=np.int8), at(2))
    # Row 2 is decided too, but nothing is predicted in it.
    assert chosen == {"Most decided": [0, 3], "In the middle": [1], "Least decided": [2]}


def test_tags_are_right_wrong_and_missed() -> None:
    scores = np.array([0.9, 0.6, 0.2], dtype=np.float32)
    said = gallery.tags(scores, np.array([1, 0, 1], dtype=np.int8), NAMES, at(3))
    assert [(tag.name, tag.kind) for tag in said.tags] == [("a", "right"), ("b", "wrong"), ("c", "missed")]
    assert [tag.score for tag in said.tags] == pytest.approx([0.9, 0.6, 0.2])


def test_each_class_has_its_own_threshold() -> None:
    scores = np.array([0.3, 0.6, 0.2], dtype=np.float32)
    said = gallery.tags(scores, np.array([1, 1, 0], dtype=np.int8), NAMES, np.array([0.25, 0.7, 0.5]))
    assert [(tag.name, tag.kind) for tag in said.tags] == [("a", "right"), ("b", "missed")]
    unknown = np.full((2, 2), -1, dtype=np.int8)
    # At 0.5 nothing would be predicted in the second image, and something in the first.
    chosen = gallery.choose(np.array([[0.1, 0.6], [0.3, 0.1]], dtype=np.float32), unknown, np.array([0.2, 0.7]))
    assert [rows for rows in chosen.values() if rows] == [[1], [0]]


def test_without_ground_truth_tags_are_only_predicted() -> None:
    said = gallery.tags(np.array([0.9, 0.5, 0.2], dtype=np.float32), np.full(3, -1, dtype=np.int8), NAMES, at(3))
    assert [(tag.name, tag.kind) for tag in said.tags] == [("a", "predicted"), ("b", "predicted")]


def test_where_nothing_is_predicted_the_likeliest_is_named_once() -> None:
    scores = np.array([0.1, 0.3, 0.2], dtype=np.float32)
    said = gallery.tags(scores, np.array([1, 0, 0], dtype=np.int8), NAMES, at(3))
    assert [(tag.name, tag.kind) for tag in said.tags] == [("a", "missed"), ("b", "below")]
    said = gallery.tags(scores, np.array([0, 1, 0], dtype=np.int8), NAMES, at(3))
    assert [(tag.name, tag.kind) for tag in said.tags] == [("b", "missed")]


def test_tags_beyond_the_limit_are_counted() -> None:
    names = [str(column) for column in range(1000)]
    said = gallery.tags(np.linspace(0.6, 0.9, 1000, dtype=np.float32), np.zeros(1000, dtype=np.int8), names, at(1000))
    assert [tag.name for tag in said.tags] == ["999", "998", "997", "996"]
    assert said.more == 996


@pytest.mark.parametrize(
    ("size", "small"), [((640, 480), (256, 192)), ((30, 40), (30, 40)), ((9, 9000), (1, 256)), ((1, 1), (1, 1))]
)
def test_thumbnails_keep_their_aspect(size: tuple[int, int], small: tuple[int, int]) -> None:
    data, width, height = gallery.thumbnail(Image.new("RGB", size, (10, 200, 30)))
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.size, (width, height)) == ("JPEG", small, small)


def pixels_of(cam: npt.NDArray[np.float32], score: float = 1.0) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(gallery.heatmap(cam, score))).convert("RGBA"))


def test_a_heatmap_is_clear_where_the_map_is_lowest_and_densest_where_it_is_highest() -> None:
    cam = np.zeros((5, 7), dtype=np.float32)
    cam[4, 0] = 3.0
    assert len(gallery.heatmap(cam, 1.0)) <= 1024
    pixels = pixels_of(cam)
    assert pixels.shape == (24, 24, 4)
    assert pixels[23, 0, 3] == pixels[..., 3].max() > 180
    assert pixels[0, 23, 3] == 0


def test_a_heatmap_is_the_hotter_and_denser_the_higher_the_score_is() -> None:
    cam = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    peaks = [pixels_of(cam, score)[23, 23].astype(int) for score in (0.0, 0.2, 0.5, 1.0)]
    lightness, opacity = [peak[:3].sum() for peak in peaks], [peak[3] for peak in peaks]
    assert lightness == sorted(set(lightness))
    assert opacity == sorted(set(opacity))
    # A class that the student hardly sees can still be found where it is looked for.
    assert opacity[0] > 50


def test_a_heatmap_of_noise_is_small_and_a_constant_one_is_clear() -> None:
    noise = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    assert len(gallery.heatmap(noise, 0.9)) <= 1000
    assert gallery.heatmap(noise, 0.9) == gallery.heatmap(noise * 5, 0.9)
    assert not pixels_of(np.full((4, 4), 7.0, np.float32))[..., 3].any()
