"""A photo beside the maps of words."""

from __future__ import annotations

import numpy as np
from PIL import Image

from clipdistill.evaluation.word_picture import WordMap, draw

CAM = np.array([[0.0, 1.0], [0.0, 0.0]], np.float32)


def panels(count: int, **changes: object) -> list[WordMap]:
    return [WordMap(f"word {number}", CAM, 0.5, **changes) for number in range(count)]


def test_panels_stand_four_a_row() -> None:
    photo = Image.new("RGB", (400, 200), "gray")
    assert draw(photo, panels(1)).size == (292, 192)
    assert draw(photo, panels(4)).width == draw(photo, panels(9)).width == 4 * 276 + 16
    assert draw(photo, panels(5)).height - draw(photo, panels(4)).height == 176


def test_chosen_words_are_framed_and_the_hot_place_is_bright() -> None:
    photo = Image.new("RGB", (200, 200), "gray")
    plain, framed = (np.asarray(draw(photo, panels(1, chosen=chosen))).astype(int) for chosen in (False, True))
    green = (framed == [0, 121, 90]).all(axis=-1)
    assert green.any()
    assert not (plain == [0, 121, 90]).all(axis=-1).any()
    inside = plain[46:246, 16:216].sum(axis=-1)
    assert inside[:50, 150:].mean() > inside[150:, :50].mean() + 50


def test_a_long_text_is_cut_and_a_photo_without_map_stays_as_it_is() -> None:
    photo = Image.new("RGB", (100, 100), (10, 200, 30))
    picture = draw(photo, [WordMap("a very long caption " * 20, None)])
    assert picture.getpixel((60, 90)) == (10, 200, 30)
    assert np.array_equal(np.asarray(picture), np.asarray(draw(photo, [WordMap("a very long caption " * 20, None)])))
