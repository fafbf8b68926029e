import numpy as np
from PIL import Image

from clipdistill.evaluation.heat import overlay


def test_the_hot_corner_is_bright_and_the_rest_is_the_dark_photo() -> None:
    photo = Image.new("RGB", (60, 40), (90, 90, 90))
    pixels = np.asarray(overlay(photo, np.array([[-3, -3], [-3, 5]], np.float32))).astype(int)
    assert pixels.shape == (40, 60, 3)
    assert pixels[-1, -1].sum() > pixels[0, 0].sum() + 150
    assert (pixels[0, 0] == pixels[0, -1]).all()


def test_a_constant_map_is_cold_everywhere() -> None:
    pixels = np.asarray(overlay(Image.new("RGB", (8, 8), (90, 90, 90)), np.full((2, 2), 7, np.float32)))
    assert (pixels == pixels[0, 0]).all()
    assert pixels[0, 0].max() < 90
