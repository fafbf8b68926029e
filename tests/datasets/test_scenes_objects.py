from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipdistill.datasets.scenes import drawing
from clipdistill.datasets.scenes.contact_sheet import contact_sheet, scene_sheet
from clipdistill.datasets.scenes.drawing import Part, Pose, box, ellipse, points, smooth
from clipdistill.datasets.scenes.objects import CLASSES, COLOURS, MAX_ANGLE, draw_object, random_pose
from clipdistill.datasets.scenes.voc_layout import scene_of
from clipdistill.params import ScenesParams

EXPECTED_CLASSES = [
    *("fish", "car", "umbrella", "house", "tree", "cup"),
    *("flower", "boat", "key", "clock", "mushroom", "butterfly"),
]


def draw(name: str, colour: str, seed: int, side: float = 64, pose: Pose | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(draw_object(name, colour, side, rng, pose or random_pose(rng))).astype(int)


def test_the_twelve_classes_stand_in_the_order_of_the_columns() -> None:
    assert list(CLASSES) == EXPECTED_CLASSES


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("side", [16, 24, 64, 95.5])
def test_a_sprite_is_as_large_as_was_asked_and_its_mask_fills_it(name: str, side: float) -> None:
    for seed in range(4):
        alpha = draw(name, "blue", seed, side)[..., 3]
        assert max(alpha.shape) == np.ceil(side)
        rows, columns = np.nonzero(alpha >= 64)
        assert rows.min() <= 1
        assert columns.min() <= 1
        assert rows.max() >= alpha.shape[0] - 3
        assert columns.max() >= alpha.shape[1] - 3


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_main_colour_is_the_named_one(name: str, colour: str) -> None:
    """Of the eight colours, counted over the pixels near one of them, the named one has the most."""
    sprite = draw(name, colour, 3, pose=Pose())
    pixels = sprite[sprite[..., 3] == 255][:, :3]
    distances = np.linalg.norm(pixels[:, None] - np.array(list(COLOURS.values())), axis=2)
    near = distances.argmin(axis=1)[distances.min(axis=1) < 45]
    assert list(COLOURS)[np.bincount(near, minlength=8).argmax()] == colour


def test_instances_of_a_class_vary() -> None:
    for name in CLASSES:
        upright = [draw(name, "red", seed, pose=Pose()) for seed in range(5)]
        assert len({sprite.tobytes() for sprite in upright}) == 5


def test_a_stranger_tells_the_classes_apart_at_24_pixels() -> None:
    """Nearest neighbour on small gray pictures: colour, pose and proportions differ, yet the class is found."""

    def gallery(seeds: range) -> tuple[np.ndarray, np.ndarray]:
        pictures, labels = [], []
        for label, name in enumerate(CLASSES):
            for seed in seeds:
                sprite = draw(name, list(COLOURS)[seed % 8], 100 * seed + label, 24)
                ground = np.zeros((24, 24))
                ground[: sprite.shape[0], : sprite.shape[1]] = sprite[..., 3]
                pictures.append(ground.ravel())
                labels.append(label)
        return np.array(pictures), np.array(labels)

    known, known_labels = gallery(range(24))
    new, labels = gallery(range(24, 32))
    nearest = ((new[:, None] - known) ** 2).sum(axis=2).argmin(axis=1)
    assert (known_labels[nearest] == labels).mean() > 0.9


def test_a_key_has_a_hole() -> None:
    alpha = draw("key", "red", 0, 64, Pose())[..., 3]
    inside = alpha[alpha.shape[0] // 2 - 2 : alpha.shape[0] // 2 + 2, :20]
    assert inside.max() == 255
    assert inside.min() == 0


def test_poses_stay_within_the_largest_angle_and_use_both_sides() -> None:
    poses = [random_pose(np.random.default_rng(seed)) for seed in range(200)]
    angles = np.array([pose.angle for pose in poses])
    assert np.abs(angles).max() <= MAX_ANGLE
    assert angles.min() < -MAX_ANGLE / 2
    assert angles.max() > MAX_ANGLE / 2
    assert 60 < sum(pose.mirrored for pose in poses) < 140


@given(st.floats(-180, 180), st.booleans())
def test_a_pose_without_stretch_keeps_distances(angle: float, mirrored: bool) -> None:
    corners = points((0, 0), (0.3, 0.7), (-1, 0.2))
    posed = Pose(angle, mirrored).apply(corners)
    np.testing.assert_allclose(np.linalg.norm(posed, axis=1), np.linalg.norm(corners, axis=1), atol=1e-12)
    turns = [np.linalg.det(shape[1:]) for shape in (corners, posed)]
    assert turns[1] == pytest.approx(-turns[0] if mirrored else turns[0])


def test_a_quarter_turn_is_clockwise_on_the_screen() -> None:
    np.testing.assert_allclose(drawing.turned(points((1, 0)), 90), [[0, 1]], atol=1e-12)
    np.testing.assert_allclose(drawing.turned(points((2, 1)), 90, 1, 1), [[1, 2]], atol=1e-12)


@given(st.floats(0.5, 2))
def test_stretch_is_width_over_height(stretch: float) -> None:
    width, height = np.ptp(Pose(stretch=stretch).apply(box(-1, -1, 1, 1)), axis=0)
    assert width / height == pytest.approx(stretch)


@pytest.mark.parametrize("closed", [True, False])
def test_a_smooth_curve_goes_through_its_corners(closed: bool) -> None:
    corners = points((0, 0), (1, 0.4), (0.2, 1), (-0.7, 0.1))
    np.testing.assert_allclose(smooth(corners, closed, steps=5)[::5], corners, atol=1e-12)


def test_alpha_is_the_covered_share_of_a_pixel() -> None:
    sprite = drawing.render([Part(ellipse(0, 0, 1, 1), (10, 20, 30))], 80, Pose())
    pixels = np.asarray(sprite).astype(float)
    assert pixels[..., 3].sum() / 255 == pytest.approx(np.pi * 40**2, rel=0.02)
    assert (pixels[pixels[..., 3] == 255][:, :3] == (10, 20, 30)).all()


def test_an_outline_runs_around_the_whole_silhouette() -> None:
    parts = [Part(box(-1, -1, 1, 1), (255, 255, 255)), Part(box(-0.5, -0.5, 0.5, 0.5), (0, 255, 0), outlined=False)]
    sprite = np.asarray(drawing.render(parts, 84, Pose(), outline=(0, 0, 0), border=0.05))
    opaque = sprite[..., 3] == 255
    assert (sprite[42][opaque[42]][[0, -1], :3] == 0).all()
    assert (sprite[:, 42][opaque[:, 42]][[0, -1], :3] == 0).all()
    assert (sprite[42, 42, :3] == (0, 255, 0)).all()
    assert (sprite[42, 10, :3] == 255).all()


def test_the_contact_sheet_shows_every_class_in_every_colour() -> None:
    side = 40
    sheet = np.asarray(contact_sheet(ScenesParams(), side)).astype(int)
    paper = sheet[0, 0]
    for row in range(len(COLOURS)):
        for column in range(len(CLASSES)):
            top, left = 40 + row * (side + 16), 84 + column * (side + 16)
            cell = sheet[top : top + side + 16, left : left + side + 16]
            assert 0.04 < (np.abs(cell - paper).sum(axis=2) > 30).mean() < 0.8


def test_the_scene_sheet_shows_the_scenes_of_the_split() -> None:
    params = ScenesParams(image_size=48)
    sheet = np.asarray(scene_sheet(params, "val", columns=2, rows=2))
    for index in range(4):
        left, top = 14 + index % 2 * 62, 14 + index // 2 * 100
        np.testing.assert_array_equal(sheet[top : top + 48, left : left + 48], scene_of(params, "val", index).image)
