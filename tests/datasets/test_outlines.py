"""The pixels that COCO's outlines cover, against the middles of pixels by hand."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from clipdistill.datasets.masks import outlines
from clipdistill.datasets.masks.outlines import covered, pack

SIZE = (7, 5)
SIDE = st.integers(-3, 9)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def middles() -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)


@settings(deadline=None, max_examples=60)
@given(SIDE, SIDE, st.integers(1, 6), st.integers(1, 6))
def test_a_rectangle_covers_the_pixels_whose_middle_lies_in_it(x0: int, y0: int, width: int, height: int) -> None:
    x, y = middles()
    wanted = (x > x0) & (x < x0 + width) & (y > y0) & (y < y0 + height)
    assert np.array_equal(covered(pack([rectangle(x0, y0, x0 + width, y0 + height)]), SIZE), wanted)


def test_an_ellipse_is_drawn_to_a_fraction_of_a_pixel() -> None:
    turn = np.linspace(0, 2 * np.pi, 200)
    corners = np.stack([30 + 20 * np.cos(turn), 25 + 15 * np.sin(turn)], axis=1)
    inside = covered(pack([corners.ravel().tolist()]), (60, 50))
    x, y = np.meshgrid(np.arange(60) + 0.5, np.arange(50) + 0.5)
    distance = np.sqrt(((x - 30) / 20) ** 2 + ((y - 25) / 15) ** 2)
    assert inside[distance < 0.98].all()
    assert not inside[distance > 1.02].any()
    assert abs(inside.sum() / (np.pi * 20 * 15) - 1) < 0.02


def test_parts_of_an_object_are_joined() -> None:
    inside = covered(pack([rectangle(0, 0, 2, 2), rectangle(1, 1, 3, 3)]), SIZE)
    assert inside.sum() == 7
    assert not covered(pack([]), SIZE).any()


COORDINATE = st.integers(-30, 60).map(lambda tenth: tenth / 4) | st.floats(-9, 16, width=32)
CORNERS = st.lists(COORDINATE, min_size=6, max_size=16).map(lambda found: found[: len(found) // 2 * 2])


@settings(deadline=None, max_examples=200)
@given(st.lists(CORNERS, min_size=1, max_size=3), st.sampled_from([1, 7, 8, 20]))
def test_what_is_drawn_in_bands_is_what_the_whole_would_be(polygons: list[list[float]], band: int) -> None:
    outline = pack(polygons)
    with patch.object(outlines, "_BAND", SIZE[0] * SIZE[1]):
        at_once = covered(outline, SIZE)
    with patch.object(outlines, "_BAND", band):
        assert np.array_equal(covered(outline, SIZE), at_once)
    assert np.array_equal(at_once, five_times_finer([np.array(polygon, np.float32) for polygon in polygons]))


def five_times_finer(polygons: list[np.ndarray]) -> np.ndarray:
    """Drawn whole, from the corner of the box around the polygons on; the middle of each pixel counts."""
    left, top = np.floor(np.concatenate(polygons).reshape(-1, 2).min(axis=0)).clip(0, SIZE).astype(int)
    canvas = Image.new("L", (5 * SIZE[0], 5 * SIZE[1]))
    for polygon in polygons:
        ImageDraw.Draw(canvas).polygon(((polygon.reshape(-1, 2) - (left, top)) * 5 - 0.5).ravel().tolist(), fill=1)
    inside = np.zeros(SIZE[::-1], bool)
    inside[top:, left:] = np.asarray(canvas)[2::5, 2::5][: SIZE[1] - top, : SIZE[0] - left] > 0
    return inside


def test_an_object_as_large_as_a_photograph_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def new(mode: str, size: tuple[int, int]) -> Image.Image:
        drawn.append(size[0] * size[1])
        return make(mode, size)

    make = Image.new
    monkeypatch.setattr(outlines.Image, "new", new)
    inside = covered(pack([rectangle(0, 0, 6000, 4000), rectangle(10, 10, 20, 20)]), (6000, 4000))
    assert inside.all()
    assert max(drawn) < 30e6
    assert sum(drawn) == 25 * inside.size


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=35, max_size=35))
def test_runs_are_counted_column_by_column(bits: list[bool]) -> None:
    counts, last = [0], False
    for bit in bits:
        if bit != last:
            counts.append(0)
            last = bit
        counts[-1] += 1
    inside = covered(pack({"counts": counts, "size": [5, 7]}), SIZE)
    assert np.array_equal(inside, np.array(bits).reshape(7, 5).T)


@pytest.mark.parametrize("counts", [[34], [36], [30, 6]])
def test_runs_of_another_size_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="its runs are of 7 x 5 pixels and fill"):
        covered(pack({"counts": counts, "size": [5, 7]}), SIZE)
