"""Which images of a table are opened, for tests of more than one room."""

from __future__ import annotations

import pytest
from PIL import Image

from clipdistill.datasets.table import ImageTable


def record_opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the images that are opened from here on, in their order; the list grows with them."""
    rows: list[int] = []
    real = ImageTable.open

    def counting(self: ImageTable, row: int) -> Image.Image:
        rows.append(row)
        return real(self, row)

    monkeypatch.setattr(ImageTable, "open", counting)
    return rows
