from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_training import Toy, make_table

from clipdistill.datasets.images import UnreadableImageError
from clipdistill.students import preprocessing
from clipdistill.training import data
from clipdistill.training.data import ImageSource, epoch_batches


@given(st.integers(1, 200), st.integers(1, 70), st.integers(0, 10), st.integers(1, 10), st.integers(2, 5))
def test_an_epoch_has_every_image_once(images: int, size: int, seed: int, epoch: int, smallest: int) -> None:
    batches = epoch_batches(images, size, seed, epoch, smallest)
    assert sorted(np.concatenate(batches).tolist()) == list(range(images))
    assert all(len(batch) == size for batch in batches[:-2])
    assert len(batches) == 1 or len(batches[-1]) >= min(size, smallest)
    assert max(map(len, batches)) < size + smallest


def test_a_lone_last_image_joins_the_batch_before() -> None:
    assert [len(batch) for batch in epoch_batches(9, 4, 0, 1)] == [4, 5]
    assert [len(batch) for batch in epoch_batches(10, 4, 0, 1)] == [4, 4, 2]
    assert [len(batch) for batch in epoch_batches(10, 4, 0, 1, smallest=3)] == [4, 6]


def test_the_order_depends_on_seed_and_epoch() -> None:
    def order(*arguments: int) -> bytes:
        return np.concatenate(epoch_batches(50, 8, *arguments)).tobytes()

    assert order(0, 1) == order(0, 1)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(1, 4)}) == 9


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("cache", ["auto", "memory", "none"])
def test_rows_come_in_the_order_asked_for(toy: Toy, cache: data.Cache, workers: int) -> None:
    table, _ = toy
    source = ImageSource(table, 32, cache, workers)
    batches = [np.array(rows) for rows in ([3, 0], [19, 3, 5], [1], [2], [4], [6])]
    found = list(source.batches(batches))
    assert len(source) == 20
    for rows, pixels in zip(batches, found, strict=True):
        expected = np.stack([preprocessing.resize(table.open(row), 32) for row in rows])
        assert torch.equal(pixels, torch.from_numpy(expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
@pytest.mark.parametrize("cache", ["memory", "none"])
def test_pinned_batches_hold_the_same_pixels(toy: Toy, cache: data.Cache) -> None:
    rows = [np.array([3, 0])]
    plain, pinned = (next(ImageSource(toy[0], 32, cache, 1, asked).batches(rows)) for asked in (False, True))
    assert pinned.is_pinned()
    assert torch.equal(pinned, plain)


def test_memory_reads_each_file_once(tmp_path: Path) -> None:
    table, _ = make_table(tmp_path / "images", 4)
    source = ImageSource(table, 32, "memory", 1)
    first = next(source.batches([np.arange(4)]))
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    assert torch.equal(next(source.batches([np.arange(4)])), first)


def test_auto_keeps_what_fits(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 20 * 3 * 32 * 32
    for limit, kept in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(data, "MEMORY_LIMIT", limit)
        assert (ImageSource(toy[0], 32, "auto", 1)._pixels is not None) == kept


def test_nobody_waits_for_images_that_nobody_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = make_table(tmp_path / "images", 12)
    (tmp_path / "images" / "002.png").unlink()
    opened: list[int] = []
    decode = ImageSource._decode

    def counted(self: ImageSource, row: int) -> preprocessing.Pixels:
        opened.append(row)
        return decode(self, row)

    monkeypatch.setattr(ImageSource, "_decode", counted)
    with pytest.raises(UnreadableImageError, match=r"002\.png"):
        list(ImageSource(table, 32, "none", 1).batches([np.array([row]) for row in range(12)]))
    assert len(opened) < 8
