"""Arrays in blocks: the files are the same however the blocks are cut, and blocks that do not fit are refused."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipdistill import layout
from clipdistill.errors import ArtifactError
from clipdistill.layout import ArraySpec, Blocks


def blocks_of(array: np.ndarray, cuts: list[int]) -> Blocks:
    borders = [0, *sorted(cut % (len(array) + 1) for cut in cuts), len(array)]
    return Blocks(array.shape, str(array.dtype), (array[start:stop] for start, stop in pairwise(borders)))


@given(rows=st.integers(0, 70), cuts=st.lists(st.integers(0, 70), max_size=8))
def test_files_do_not_depend_on_the_blocks(rows: int, cuts: list[int]) -> None:
    array = np.arange(3 * rows, dtype=np.int32).reshape(rows, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_FILE_BYTES", 200)
        files = list(blocks_of(array, cuts).files())
    assert [len(file) for file in files] == [16] * (rows // 16) + [rows % 16] * (rows % 16 > 0)
    np.testing.assert_array_equal(np.concatenate([array[:0], *files]), array)


def test_a_file_holds_a_power_of_two_rows_and_at_most_64_mib() -> None:
    spec = Blocks((738_729, 80), "float32", []).spec
    assert spec == ArraySpec((738_729, 80), "float32", 131_072)
    assert spec.shards == 6
    assert spec.rows * spec.row_bytes <= 64 * 2**20 < 2 * spec.rows * spec.row_bytes
    assert spec.rows % spec.chunk_rows == 0


def test_one_file_where_that_is_enough() -> None:
    assert Blocks((131_072, 80), "float32", []).spec == ArraySpec((131_072, 80), "float32")
    assert Blocks((0, 80), "float32", []).spec == ArraySpec((0, 80), "float32")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (np.zeros((4, 2), np.float32), r"4 rows came of an array float32 \[5, 2\]"),
        (np.zeros((6, 2), np.float32), r"after 0 rows .* a block float32 \[6, 2\]"),
        (np.zeros((5, 3), np.float32), r"a block float32 \[5, 3\]"),
        (np.zeros((5, 2), np.float64), r"a block float64 \[5, 2\]"),
    ],
)
def test_blocks_that_do_not_make_up_the_array_are_refused(block: np.ndarray, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        list(Blocks((5, 2), "float32", [block]).files())
