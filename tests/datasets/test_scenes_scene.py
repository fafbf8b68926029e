from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdistill.datasets.scenes.canvas import Box, Canvas
from clipdistill.datasets.scenes.objects import CLASSES, COLOURS
from clipdistill.datasets.scenes.scene import Scene, draw_scene

boxes = st.builds(
    lambda left, top, width, height: Box(left, top, left + width, top + height),
    *[st.integers(-5, 12)] * 2,
    *[st.integers(0, 9)] * 2,
)


def scenes(count: int, side: int = 48, max_objects: int = 4) -> list[Scene]:
    return [draw_scene(np.random.default_rng([7, row]), side, max_objects) for row in range(count)]


@given(boxes, boxes)
def test_what_boxes_share_is_what_their_pixels_share(one: Box, other: Box) -> None:
    def pixels(item: Box) -> set[tuple[int, int]]:
        return {(x, y) for x in range(item.left, item.right) for y in range(item.top, item.bottom)}

    assert one.area == len(pixels(one))
    assert one.meet(other).area == len(pixels(one) & pixels(other))


def test_equal_seeds_give_equal_scenes() -> None:
    one, other = (draw_scene(np.random.default_rng([3, 1]), 64, 4) for _ in range(2))
    assert one.image.tobytes() == other.image.tobytes()
    assert one.objects == other.objects
    assert draw_scene(np.random.default_rng([3, 2]), 64, 4).image.tobytes() != one.image.tobytes()


def test_boxes_lie_in_the_image_and_are_the_extent_of_the_mask() -> None:
    for scene in scenes(60):
        for name in {item.name for item in scene.objects}:
            rows, columns = np.nonzero(scene.mask == CLASSES.index(name) + 1)
            of_class = [item.box for item in scene.objects if item.name == name]
            assert columns.min() == min(item.left for item in of_class) >= 0
            assert rows.min() == min(item.top for item in of_class) >= 0
            assert columns.max() + 1 == max(item.right for item in of_class) <= 48
            assert rows.max() + 1 == max(item.bottom for item in of_class) <= 48
        shown = {CLASSES[index - 1] for index in np.unique(scene.mask) if index}
        assert shown == {item.name for item in scene.objects}


def test_mask_pixels_are_drawn_and_the_others_are_ground() -> None:
    """An object's pixels differ from the same picture without it; pixels far from it do not."""
    with_object, without = (Canvas(np.random.default_rng(5), 64) for _ in range(2))
    sprite = with_object.draw("house", "red", 0.5)
    with_object.add_object("house", "red", sprite, Box(10, 12, 10 + sprite.width, 12 + sprite.height))
    pictures = [np.asarray(canvas.picture).astype(int) for canvas in (with_object, without)]
    changed = np.abs(pictures[0] - pictures[1]).sum(axis=2) > 0
    mask = with_object.mask(CLASSES)
    assert set(np.unique(mask)) == {0, CLASSES.index("house") + 1}
    assert changed[mask > 0].mean() > 0.97
    assert not changed[:4].any()
    assert not changed[:, 60:].any()


def test_an_object_that_another_covers_is_not_listed() -> None:
    canvas = Canvas(np.random.default_rng(0), 64)
    small, large = canvas.draw("key", "blue", 0.1), canvas.draw("house", "red", 0.9)
    canvas.add_object("key", "blue", small, Box(28, 38, 28 + small.width, 38 + small.height))
    assert [item.name for item in canvas.objects()] == ["key"]
    canvas.add_object("house", "red", large, Box(2, 2, 2 + large.width, 2 + large.height))
    assert [item.name for item in canvas.objects()] == ["house"]


def test_clutter_in_front_takes_pixels_from_the_mask() -> None:
    canvas = Canvas(np.random.default_rng(1), 64)
    sprite = canvas.draw("house", "red", 0.9)
    canvas.add_object("house", "red", sprite, Box(2, 2, 2 + sprite.width, 2 + sprite.height))
    before = int((canvas.mask(CLASSES) > 0).sum())
    canvas.add_clutter(6, 0.2, 0.3)
    assert 0 < int((canvas.mask(CLASSES) > 0).sum()) < before


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 0.95), st.booleans())
def test_places_lie_inside_the_frame_or_are_cut_by_it_as_asked(seed: int, share: float, cut: bool) -> None:
    canvas = Canvas(np.random.default_rng(seed), 40)
    place = canvas.find_place(canvas.draw("clock", "blue", share), 0.1, cut)
    if place is None:
        assert cut
        return
    visible = place.meet(canvas.frame).area / place.area
    assert 0.5 <= visible <= 0.95 if cut else visible == 1


def test_objects_overlap_little_and_have_the_sizes_promised() -> None:
    sizes = []
    for scene in scenes(150, side=64):
        for number, item in enumerate(scene.objects):
            sizes.append(max(item.box.right - item.box.left, item.box.bottom - item.box.top) / 64)
            for other in scene.objects[:number]:
                smaller = min(item.box.area, other.box.area)
                # 0.12 of the placed boxes; what is visible of them is a little smaller.
                assert item.box.meet(other.box).area <= 0.2 * smaller
    assert max(sizes) <= 0.5 + 1 / 64
    assert np.quantile(sizes, 0.02) >= 0.2
    assert np.ptp(sizes) > 0.2


def test_numbers_classes_colours_and_places_are_about_uniform() -> None:
    drawn = scenes(400, side=32)
    numbers = Counter(len(scene.objects) for scene in drawn)
    assert set(numbers) == {1, 2, 3, 4}
    assert all(70 < count < 130 for count in numbers.values())
    objects = [item for scene in drawn for item in scene.objects]
    for values, expected in (
        (Counter(item.name for item in objects), CLASSES),
        (Counter(item.colour for item in objects), COLOURS),
    ):
        mean = len(objects) / len(expected)
        assert set(values) == set(expected)
        # Five standard deviations of a binomial count.
        assert all(abs(count - mean) < 5 * mean**0.5 for count in values.values())
    centres = np.array([((o.box.left + o.box.right) / 64, (o.box.top + o.box.bottom) / 64) for o in objects])
    assert np.abs(centres.mean(axis=0) - 0.5).max() < 0.03
    twice = sum(len({item.name for item in scene.objects}) < len(scene.objects) for scene in drawn)
    assert 10 < twice < 60


@pytest.mark.parametrize(("side", "max_objects"), [(32, 9), (32, 1), (64, 9)])
def test_extreme_parameters_give_scenes_too(side: int, max_objects: int) -> None:
    drawn = scenes(40, side, max_objects)
    assert all(1 <= len(scene.objects) <= max_objects for scene in drawn)
    assert max(len(scene.objects) for scene in drawn) >= min(max_objects, 7)
    assert all(scene.image.size == (side, side) and scene.image.mode == "RGB" for scene in drawn)
