import numpy as np
import pytest
import torch
from PIL import Image

from clipdistill.students import preprocessing


def test_the_whole_image_stays_in_sight() -> None:
    """A wide image with a white left and right end: both ends are in the square."""
    pixels = np.zeros((20, 200, 3), dtype=np.uint8)
    pixels[:, :40] = pixels[:, -40:] = 255
    small = preprocessing.resize(Image.fromarray(pixels), 40)
    assert small.shape == (3, 40, 40)
    assert small.dtype == np.uint8
    assert (small[:, :, :6] == 255).all()
    assert (small[:, :, -6:] == 255).all()
    assert (small[:, :, 15:25] == 0).all()


def test_fine_patterns_do_not_alias() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = preprocessing.resize(Image.fromarray(stripes), 16).astype(int)
    assert abs(small - 128).max() < 20


def test_channels_keep_their_order() -> None:
    red = np.zeros((5, 5, 3), dtype=np.uint8)
    red[..., 0] = 200
    assert preprocessing.resize(Image.fromarray(red), 4).mean(axis=(1, 2)).tolist() == [200, 0, 0]


def test_normalise_takes_bytes_and_shares() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    expected = (images.double() / 255 - torch.tensor([0.485, 0.456, 0.406]).double()[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).double()[:, None, None]
    for values in (images, images.float() / 255):
        result = preprocessing.normalise(values)
        torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=1e-5)
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [1, 33])
def test_any_size(size: int) -> None:
    assert preprocessing.resize(Image.new("RGB", (3, 7)), size).shape == (3, size, size)
