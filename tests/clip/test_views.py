from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipdistill import store
from clipdistill.clip import views
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ArtifactError
from clipdistill.params import SnippetViewParams

SIZES = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=5)


def table_of(sizes: list[tuple[int, int]]) -> ImageTable:
    widths, heights = (np.array(side, dtype=np.int32) for side in zip(*sizes, strict=True))
    names = [f"{i:03d}" for i in range(len(sizes))]
    return ImageTable(Path(), names, names, widths, heights, np.ones(len(sizes), np.int64), names, 10**6)


def coverage(box: np.ndarray, width: int, height: int) -> np.ndarray:
    count = np.zeros((height, width), int)
    for x0, y0, x1, y1 in box.astype(int):
        count[y0:y1, x0:x1] += 1
    return count


@given(SIZES, st.integers(1, 7))
def test_cells_of_a_grid_hold_every_pixel_once(sizes: list[tuple[int, int]], grid: int) -> None:
    table = views.snippets(table_of(sizes), SnippetViewParams(grid=grid))
    assert table.uniform_count == grid * grid
    for image, (width, height) in enumerate(sizes):
        box = table.box[table.offset[image] : table.offset[image + 1]]
        assert (box[:, 2:] > box[:, :2]).all()
        if min(width, height) >= grid:
            assert (coverage(box, width, height) == 1).all()
        else:
            assert (coverage(box, width, height) >= 1).all()


@given(SIZES, st.integers(1, 40), st.floats(0, 0.9))
def test_tiles_are_square_and_hold_every_pixel(sizes: list[tuple[int, int]], tile: int, overlap: float) -> None:
    table = views.snippets(table_of(sizes), SnippetViewParams(tile=tile, overlap=overlap))
    for image, (width, height) in enumerate(sizes):
        box = table.box[table.offset[image] : table.offset[image + 1]]
        assert (box[:, 2] - box[:, 0] == min(tile, width)).all()
        assert (box[:, 3] - box[:, 1] == min(tile, height)).all()
        assert (coverage(box, width, height) >= 1).all()


@given(SIZES, st.integers(2, 6), st.floats(0, 0.8))
def test_overlap_is_the_stated_share_of_a_cell(sizes: list[tuple[int, int]], grid: int, overlap: float) -> None:
    params = SnippetViewParams(grid=grid, overlap=overlap)
    table = views.snippets(table_of(sizes), params)
    for image, (width, height) in enumerate(sizes):
        box = table.box[table.offset[image] : table.offset[image + 1]].reshape(grid, grid, 4)
        length = width / (grid - (grid - 1) * overlap)
        if width >= grid:
            shared = box[0, :-1, 2] - box[0, 1:, 0]
            np.testing.assert_allclose(shared, overlap * length, atol=1.01)
        assert box[0, 0, 0] == 0
        assert box[-1, -1, 2:].tolist() == [width, height]


def test_snippets_stand_row_by_row() -> None:
    table = views.snippets(table_of([(6, 4)]), SnippetViewParams(grid=2))
    assert table.box.tolist() == [[0, 0, 3, 2], [3, 0, 6, 2], [0, 2, 3, 4], [3, 2, 6, 4]]


def test_tile_counts_follow_each_image() -> None:
    table = views.snippets(table_of([(10, 10), (25, 10), (3, 3)]), SnippetViewParams(tile=10))
    assert np.diff(table.offset).tolist() == [1, 3, 1]
    assert table.uniform_count is None
    assert table.box[1:4, 0].tolist() == [0, 10, 15]


@pytest.mark.parametrize(("rows", "images"), [((0, 1), (0, 1)), ((0, 4), (0, 2)), ((2, 5), (1, 3)), ((4, 6), (2, 3))])
def test_images_of_a_range_of_views(rows: tuple[int, int], images: tuple[int, int]) -> None:
    table = views.ViewTable(np.zeros((6, 4), np.float32), np.array([0, 1, 4, 6]))
    assert table.images_of(*rows) == images


@pytest.mark.parametrize(
    ("box", "offset", "message"),
    [
        ([[0, 0, 9, 9], [3, 3, 3, 9]], [0, 1, 2], r"box 1, \[3\.0, 3\.0, 3\.0, 9\.0\], shows nothing"),
        ([[20, 0, 30, 9], [0, 0, 9, 9]], [0, 1, 2], "box 0, .* shows nothing of its image"),
        ([[0, -9, 9, 0], [0, 0, 9, 9]], [0, 1, 2], "box 0, .* shows nothing of its image"),
        ([[0, 0, 9, 9], [20, 0, 30, 9]], [0, 2, 2], "box 1, .* shows nothing of its image"),
        ([[0, 0, 9, 9]], [0, 1, 2], "has 1 views, but its images 2"),
        ([[0, 0, 9, 9]], [0, 2, 1], "no view table of 2 images"),
        ([[0, 0, 9, 9]], [1, 1, 1], "no view table of 2 images"),
        ([[0, 0, 9, 9]], [0, 1], "no view table of 2 images"),
        ([[0, 0, 9]], [0, 1, 1], "no view table of 2 images"),
    ],
)
def test_stored_boxes_that_show_nothing_are_refused(
    tmp_path: Path, box: list[list[float]], offset: list[int], message: str
) -> None:
    table = table_of([(10, 10), (40, 10)])
    arrays = {"box": np.array(box, np.float32), "offset": np.array(offset)}
    store.write_group(tmp_path / "a.zarr", arrays, {"table": table.fingerprint})
    with pytest.raises(ArtifactError, match=message):
        views.stored(tmp_path / "a.zarr", table)


def test_stored_boxes_may_reach_beyond_their_image(tmp_path: Path) -> None:
    table = table_of([(10, 10), (40, 10)])
    arrays = {"box": np.array([[-5, -5, 1e6, 1e6], [20, 0, 30, 9]], np.float32), "offset": np.array([0, 1, 2])}
    store.write_group(tmp_path / "a.zarr", arrays, {"table": table.fingerprint})
    assert len(views.stored(tmp_path / "a.zarr", table)) == 2


def test_whole_is_the_image() -> None:
    table = views.whole(table_of([(5, 7), (3, 2)]))
    assert table.box.tolist() == [[0, 0, 5, 7], [0, 0, 3, 2]]
    assert table.offset.tolist() == [0, 1, 2]
