from pathlib import Path

import pytest
from toy_training import Toy, make_table

from clipdistill.work import WORK_ROOT_VARIABLE


@pytest.fixture(autouse=True)
def work_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(WORK_ROOT_VARIABLE, str(tmp_path / "work"))
    return tmp_path / "work"


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """20 images: with batches of 8 an epoch has 3 updates."""
    return make_table(tmp_path_factory.mktemp("toy"), 20)
