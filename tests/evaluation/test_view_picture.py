"""The picture of views: what it shows stands where it belongs, and no input is too odd to draw."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from clipdistill.errors import DataError
from clipdistill.evaluation import view_picture
from clipdistill.evaluation.view_picture import LookedAt, Story, draw

GROUND = (90, 40, 20)
"""Colour of the test photos, which nothing else in a picture has."""
PEAK = np.pad(np.ones((1, 1), np.float32), ((1, 5), (5, 1)))
"""A map [7, 7] with one hot cell, row 1, column 5."""


def solid(width: int = 300, height: int = 200) -> Image.Image:
    return Image.new("RGB", (width, height), GROUND)


def looked_at(box: tuple[float, float, float, float] = (60, 40, 240, 160), **changes: object) -> LookedAt:
    view = LookedAt("dog", 0.9, box, PEAK, [("dog", 0.8), ("cat", 0.1)])
    return dataclasses.replace(view, **changes)


def story(*views: LookedAt, **changes: object) -> Story:
    told = Story("2007_000027", list(views), {"dog": 0.2, "cat": 0.6}, {"dog": 0.9, "cat": 0.1}, ["dog"])
    return dataclasses.replace(told, **changes)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def where(picture: Image.Image, colour: str | tuple[int, int, int]) -> np.ndarray:
    """Mask of the pixels that have exactly this colour."""
    rgb = ImageColor.getrgb(colour) if isinstance(colour, str) else colour
    return (pixels(picture) == rgb).all(axis=-1)


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of what a mask marks, all inclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1], rows[-1]


def overview(photo: Image.Image) -> tuple[int, int, int, int]:
    """Edges of the large photo, found where a story without views leaves nothing on it."""
    return bounds(where(draw(photo, story()), GROUND))


def panel(photo: Image.Image, view: LookedAt) -> tuple[int, int, int, int]:
    """Edges of the first panel's photo: the pixels that change when its map is turned round."""
    ramp = np.repeat(np.linspace(0, 1, 8, dtype=np.float32)[None], 2, axis=0)
    there, back = (draw(photo, story(dataclasses.replace(view, cam=cam))) for cam in (ramp, ramp[:, ::-1]))
    return bounds((pixels(there) != pixels(back)).any(axis=-1))


def inside(picture: Image.Image, edges: tuple[int, int, int, int]) -> np.ndarray:
    left, upper, right, lower = edges
    return pixels(picture)[upper : lower + 1, left : right + 1]


# The whole picture


@pytest.mark.parametrize(
    "size", [(1, 1), (96, 64), (64, 96), (500, 375), (375, 500), (4000, 3000), (4000, 90), (7, 4000)]
)
def test_every_size_of_photo_fills_the_room_with_its_aspect_kept(size: tuple[int, int]) -> None:
    photo = solid(*size)
    picture = draw(photo, story(*[looked_at((0, 0, *size))] * 4))
    assert picture.mode == "RGB"
    assert picture.width == view_picture.WIDTH
    assert 300 < picture.height < 1600
    left, upper, right, lower = overview(photo)
    width, height = right - left + 1, lower - upper + 1
    scale = min(560 / size[0], 430 / size[1])
    assert (width, height) == pytest.approx((size[0] * scale, size[1] * scale), abs=1)


def test_equal_input_gives_equal_bytes_and_stays_as_it_was() -> None:
    photo = Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    told, before = story(looked_at((5, 5, 60, 60))), photo.tobytes()
    assert draw(photo, told).tobytes() == draw(photo.copy(), told).tobytes()
    assert photo.tobytes() == before
    np.testing.assert_array_equal(told.views[0].cam, PEAK)


def test_gray_photos_are_drawn_as_their_rgb() -> None:
    photo, told = Image.fromarray(np.arange(6000, dtype=np.uint8).reshape(60, 100)), story(looked_at((5, 5, 60, 60)))
    assert draw(photo, told).tobytes() == draw(photo.convert("RGB"), told).tobytes()


def test_title_and_truth_are_told() -> None:
    changes = ({}, {"title": "other"}, {"truth": None}, {"truth": []}, {"truth": ["cat"]})
    assert len({draw(solid(), story(**change)).tobytes() for change in changes}) == 5


# Boxes


def test_each_box_has_its_colour_at_its_place() -> None:
    photo = solid(600, 400)
    boxes = [(20 + 200 * (i % 3), 30 + 200 * (i // 3), 170 + 200 * (i % 3), 180 + 200 * (i // 3)) for i in range(6)]
    picture = draw(photo, story(*map(looked_at, boxes)))
    left, upper, right, lower = overview(photo)
    across, down = (right - left) / 600, (lower - upper) / 400
    for box, colour in zip(boxes, view_picture.COLOURS, strict=True):
        mask = where(picture, colour)
        x0, x1 = round(left + box[0] * across), round(left + box[2] * across)
        y0, y1 = round(upper + box[1] * down), round(upper + box[3] * down)
        x, y = (x0 + x1) // 2, (y0 + y1) // 2
        assert all((mask[y, x0], mask[y, x1], mask[y0, x], mask[y1, x])), colour
        assert not mask[y, x], colour
        assert not mask[upper : lower + 1, left : right + 1][:, : max(0, x0 - left - 3)].any(), colour


def test_a_panel_shows_its_own_box_alone() -> None:
    photo, view = solid(), looked_at((60, 40, 240, 160))
    left, upper, right, lower = panel(photo, view)
    rgb = inside(draw(photo, story(view, looked_at((10, 10, 50, 50)))), (left, upper, right, lower))
    blue, orange = ((rgb == ImageColor.getrgb(colour)).all(axis=-1) for colour in view_picture.COLOURS[:2])
    expected = (0.2 * (right - left), 0.2 * (lower - upper), 0.8 * (right - left), 0.8 * (lower - upper))
    assert bounds(blue) == pytest.approx(expected, abs=2)
    assert not orange.any()


def test_boxes_that_coincide_are_all_seen() -> None:
    picture = draw(solid(), story(*[looked_at()] * 3))
    left, _, right, lower = overview(solid())
    masks = (where(picture, colour)[: lower + 1, left : right + 1] for colour in view_picture.COLOURS[:3])
    assert len({bounds(mask)[3] for mask in masks}) == 3


@pytest.mark.parametrize(
    "box", [(50, 50, 50, 50), (300, 200, 300, 200), (0, 0, 0, 200), (-500, -500, -400, -400), (240, 160, 60, 40)]
)
def test_a_box_without_area_is_a_mark_in_its_panel(box: tuple[float, float, float, float]) -> None:
    edges = panel(solid(), looked_at(box))
    rgb = inside(draw(solid(), story(looked_at(box))), edges)
    assert (rgb == ImageColor.getrgb(view_picture.COLOURS[0])).all(axis=-1).sum() >= 12


def test_corners_in_the_wrong_order_and_boxes_that_leave_the_image_are_put_right() -> None:
    right_way = draw(solid(), story(looked_at((60, 40, 300, 200)))).tobytes()
    assert draw(solid(), story(looked_at((300, 200, 60, 40)))).tobytes() == right_way
    assert draw(solid(), story(looked_at((60, 40, 1e9, 1e9)))).tobytes() == right_way


def test_colours_stay_apart_for_the_colour_blind() -> None:
    # Machado et al. 2009, "A physiologically-based model for simulation of color vision deficiency", severity 1.
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    linear = (np.array([ImageColor.getrgb(colour) for colour in view_picture.COLOURS]) / 255) ** 2.2
    for seen_by in (np.eye(3), np.array(protan), np.array(deutan)):
        seen = (linear @ seen_by.T).clip(0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 9 * np.eye(len(seen))
        assert apart.min() > 0.15


# Activation maps


def test_the_overlay_is_hot_where_the_map_is() -> None:
    photo, view = solid(), looked_at((0, 150, 40, 200))
    edges = panel(photo, view)
    hot = inside(draw(photo, story(view)), edges)
    cold = inside(draw(photo, story(dataclasses.replace(view, cam=np.zeros((7, 7), np.float32)))), edges)
    changed = (hot != cold).any(axis=-1)
    height, width = changed.shape
    # The hot cell is row 1, column 5 of 7; a bilinear peak reaches as far as the centres of its neighbours.
    y, x = np.unravel_index((hot - cold).sum(axis=-1).argmax(), changed.shape)
    assert (x / width, y / height) == pytest.approx((5.5 / 7, 1.5 / 7), abs=0.02)
    left, _, _, lower = bounds(changed)
    assert left > 4.4 / 7 * width
    assert lower < 2.6 / 7 * height
    assert hot[y, x].sum() > cold[y, x].sum() + 200


def test_the_overlay_grows_lighter_with_the_heat() -> None:
    photo = Image.new("RGB", (400, 200))
    view = looked_at((0, 190, 400, 200), cam=np.linspace(0, 1, 400, dtype=np.float32)[None])
    lightness = inside(draw(photo, story(view)), panel(photo, view))[20] @ (0.299, 0.587, 0.114)
    assert (np.diff(lightness[4:-4]) >= -1).all()
    assert lightness[-5] > lightness[4] + 120


@pytest.mark.parametrize("cam", [PEAK * 1000, PEAK / 4 + 8, np.where(PEAK > 0, 3e38, -3e38)])
def test_only_the_shape_of_a_map_counts(cam: np.ndarray) -> None:
    view = looked_at(cam=cam.astype(np.float32))
    assert draw(solid(), story(view)).tobytes() == draw(solid(), story(looked_at())).tobytes()


@pytest.mark.parametrize("value", [0.0, 5.0, -3e38])
def test_a_constant_map_is_cold(value: float) -> None:
    pictures = [draw(solid(), story(looked_at(cam=np.full(shape, value, np.float32)))) for shape in ((7, 7), (1, 1))]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    rgb = inside(pictures[0], panel(solid(), looked_at()))
    assert rgb[4:20, 4:20].std(axis=(0, 1)).max() == 0


# Crops and answers


def test_the_crop_is_what_the_box_holds() -> None:
    photo = solid(300, 200)
    photo.paste((0, 255, 0), (150, 0, 300, 200))
    picture = draw(photo, story(looked_at((160, 20, 280, 140))))
    crop = pixels(picture)[picture.height - 174 : picture.height - 24, 24:174]
    assert (crop == (0, 255, 0)).all()


def test_answers_are_told_in_their_order_and_the_rest_is_left_out() -> None:
    answer = [(f"class {i}", 0.9 - 0.1 * i) for i in range(view_picture.MAX_ANSWERS + 1)]
    parts = (answer, answer[:-1], answer[::-1], [])
    full, cut, turned, none = (draw(solid(), story(looked_at(answer=part))).tobytes() for part in parts)
    assert full == cut
    assert len({full, turned, none}) == 3


def test_views_after_the_sixth_are_counted() -> None:
    six, eight, nine = (pixels(draw(solid(), story(*[looked_at()] * n))) for n in (6, 8, 9))
    assert six.shape == eight.shape
    for one, other in ((six, eight), (eight, nine)):
        _, upper, _, lower = bounds((one != other).any(axis=-1))
        assert lower - upper < 24
    assert pixels(draw(solid(), story(*[looked_at()] * 3))).shape[0] < six.shape[0]


# Labels


def bar_lengths(picture: Image.Image, colour: str) -> list[int]:
    """Longest run of a colour in each bar of the right half, from top to bottom; the legend's square is left out."""
    counts = where(picture, colour)[:, 796:].sum(axis=1)
    starts = np.flatnonzero((counts > 0) & (np.roll(counts, 1) == 0))
    return [int(counts[start + 5]) for start in starts if start > 116]


def test_bars_are_as_long_as_the_labels() -> None:
    picture = draw(solid(), story(before={"dog": 0.25, "cat": 1.0}, after={"dog": 0.75, "cat": 0.5}))
    full = bar_lengths(picture, view_picture.BEFORE_COLOUR)[0]
    assert full > 200
    assert bar_lengths(picture, view_picture.BEFORE_COLOUR) == pytest.approx([full, full / 4], abs=2)
    assert bar_lengths(picture, view_picture.AFTER_COLOUR) == pytest.approx([full / 2, full * 3 / 4], abs=2)


def test_a_label_of_zero_has_no_bar_and_an_unknown_one_is_not_zero() -> None:
    picture = draw(solid(), story(before={"dog": 0.0}, after={"dog": 1.0}))
    assert bar_lengths(picture, view_picture.BEFORE_COLOUR) == []
    assert len(bar_lengths(picture, view_picture.AFTER_COLOUR)) == 1
    unknown = draw(solid(), story(before={}, after={"dog": 1.0}))
    # Between the bars and the column of changes stand the values.
    assert (pixels(picture)[:200, 1064:1112] != pixels(unknown)[:200, 1064:1112]).any()


def test_a_change_too_small_to_show_has_no_minus() -> None:
    down, same = (draw(solid(), story(before={"dog": value}, after={"dog": 0.5})) for value in (0.501, 0.5))
    assert down.tobytes() == same.tobytes()


def test_the_eight_classes_with_the_largest_label_before_or_after_are_shown() -> None:
    before = {f"class {i}": 0.3 for i in range(4)} | {f"low {i}": 0.1 for i in range(9)}
    after = {f"class {i}": 0.9 for i in range(4, 8)} | {f"low {i}": 0.2 for i in range(9)}
    large = ({k: v for k, v in label.items() if k.startswith("class")} for label in (before, after))
    shown = story(**dict(zip(("before", "after"), large, strict=True)))
    assert draw(solid(), story(before=before, after=after)).tobytes() == draw(solid(), shown).tobytes()
    grown = story(before=before, after=after | {"low 3": 0.95})
    assert draw(solid(), grown).tobytes() != draw(solid(), shown).tobytes()


def test_true_classes_have_a_tick() -> None:
    def ticks(truth: list[str] | None) -> tuple[bool, bool, bool]:
        mask = where(draw(solid(), story(looked_at(), truth=truth)), "#00795A")
        return bool(mask[:86].any()), bool(mask[86:480, 600:].any()), bool(mask[480:].any())

    assert ticks(["dog"]) == (True, True, True)
    assert ticks(["zebra"]) == (True, False, False)
    assert ticks([]) == ticks(None) == (False, False, False)


# Odd input


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=300), st.sampled_from([14, 16, 26]), st.floats(30, 1152))
def test_any_text_fits_one_line(text: str, size: int, width: float) -> None:
    line = view_picture._cut(text, size, width)
    assert view_picture._font(size).getlength(line) <= width
    assert line.isprintable()
    assert line.endswith("…") or len(line) == len(text)


def test_long_and_odd_names_stay_within_the_margins() -> None:
    for name in ("W" * 5000, "犬" * 90, "a\nb\x00\ud800 " * 40, ""):
        view = looked_at(name=name, answer=[(name, 1e30), ("cat", -5.0)])
        picture = draw(solid(), story(view, title=name, truth=[name], before={name: 0.5}, after={name: 1.0}))
        outside = pixels(picture)[:, [*range(20), *range(view_picture.WIDTH - 20, view_picture.WIDTH)]]
        assert (outside == 255).all()


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_nothing_finite_is_too_odd_to_draw(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    corner, shape = st.floats(-1e6, 1e6), data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    cam = np.full(shape, data.draw(st.floats(-(2.0**127), 2.0**127, width=32)), np.float32)
    cam[0, 0] = data.draw(st.floats(-(2.0**127), 2.0**127, width=32))
    boxes = data.draw(st.lists(st.tuples(corner, corner, corner, corner), max_size=7))
    picture = draw(solid(*size), story(*(looked_at(box, cam=cam) for box in boxes)))
    assert picture.width == view_picture.WIDTH


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (story(before={"dog": NAN}), "label of class 'dog'"),
        (story(after={"dog": INF}), "label of class 'dog'"),
        (story(looked_at(), looked_at(probability=NAN)), "view 2"),
        (story(looked_at((0, 0, INF, 1))), "box"),
        (story(looked_at(answer=[("dog", NAN)])), "scores"),
        (story(looked_at(cam=np.array([[0, NAN]], np.float32))), "activation map"),
        (story(looked_at(cam=np.zeros((0, 7), np.float32))), r"\[0, 7\]"),
        (story(looked_at(cam=np.zeros(7, np.float32))), r"\[7\]"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(told: Story, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        draw(solid(), told)
    assert "2007_000027" in str(caught.value)
