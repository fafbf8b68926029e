"""Views in full batches: their order, their sizes, and how much is in memory."""

import numpy as np
import pytest
from PIL import Image

from clipdistill.clip import pixels, views
from clipdistill.clip.pixels import ViewSource
from clipdistill.clip.preprocessing import ViewTransform
from clipdistill.clip.teacher import Preprocessing
from clipdistill.clip.views import ViewTable
from clipdistill.datasets.images import UnreadableImageError
from clipdistill.datasets.table import ImageTable
from clipdistill.params import SnippetViewParams
from opened_images import record_opened

SQUASH = ViewTransform(Preprocessing(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "shortest"), "squash")


def expected(table: ImageTable, boxes: ViewTable) -> np.ndarray:
    """Every view by itself."""
    image = np.repeat(np.arange(len(table)), np.diff(boxes.offset))
    return np.concatenate([SQUASH(table.open(row), boxes.box[i : i + 1]) for i, row in enumerate(image)])


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_batches_are_full_and_in_order_whatever_the_number_of_views(photos: ImageTable, size: int) -> None:
    boxes = views.snippets(photos, SnippetViewParams(tile=23))
    ranges = [(0, 101), (101, 130), (200, len(boxes))]
    batches = list(ViewSource(photos, boxes, SQUASH, threads=3).batches(ranges, size))
    wanted = expected(photos, boxes)
    for start, stop in ranges:
        own = [batch for batch in batches if start <= batch.start < stop]
        assert [len(batch.pixels) for batch in own[:-1]] == [size] * (len(own) - 1)
        assert (own[0].start, own[-1].stop) == (start, stop)
        np.testing.assert_array_equal(np.concatenate([batch.pixels.numpy() for batch in own]), wanted[start:stop])


def test_images_without_views_are_not_opened(photos: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.arange(60) % 3
    whole = views.whole(photos)
    boxes = ViewTable(np.repeat(whole.box, counts, axis=0), np.concatenate([[0], np.cumsum(counts)]))
    opened = record_opened(monkeypatch)
    batches = list(ViewSource(photos, boxes, SQUASH, threads=2).batches([(0, len(boxes))], 16))
    assert sum(len(batch.pixels) for batch in batches) == counts.sum()
    assert sorted(opened) == [row for row in range(60) if row % 3]


def test_no_more_than_a_few_batches_are_begun(photos: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = record_opened(monkeypatch)
    batches = ViewSource(photos, views.whole(photos), SQUASH, threads=1).batches([(0, 60)], 2)
    next(batches)
    batches.close()
    assert len(opened) <= 2 * (pixels._AHEAD + 1)


def test_an_image_of_thousands_of_views_is_decoded_once_and_cut_batch_by_batch(
    photos: ImageTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = record_opened(monkeypatch)
    boxes = views.snippets(photos, SnippetViewParams(tile=2))
    begun: list[int] = []
    source = ViewSource(photos, boxes, SQUASH, threads=2)
    monkeypatch.setattr(SQUASH, "_view", lambda *_: begun.append(0) or np.zeros((16, 16, 3), np.uint8))
    batches = source.batches([(0, int(boxes.offset[1]))], 8)
    next(batches)
    assert len(begun) <= 8 * (pixels._AHEAD + 1)
    assert sum(len(batch.pixels) for batch in batches) == boxes.offset[1] - 8
    assert opened == [0]


def test_a_broken_image_is_named(photos: ImageTable) -> None:
    Image.new("RGB", (4, 4)).save(photos.root / photos.paths[9])
    with pytest.raises(UnreadableImageError, match=r"009\.png: its bytes have changed"):
        list(ViewSource(photos, views.whole(photos), SQUASH, threads=2).batches([(0, 60)], 8))
