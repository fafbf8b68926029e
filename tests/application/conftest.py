from pathlib import Path

import pytest
from command_run import Ran, Run

from clipdistill import cli
from clipdistill.datasets.table import ClassName, write_labels
from clipdistill.training.supervision import FixedLabels
from clipdistill.work import WORK_ROOT_VARIABLE
from training.toy_training import CLASSES, Toy, make_table, train


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """24 images of coloured squares in a folder with spaces in its name, and their truth."""
    return make_table(tmp_path_factory.mktemp("toy") / "my images", 24)


@pytest.fixture(scope="session")
def model(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of three classes, trained on the truth itself."""
    folder = tmp_path_factory.mktemp("student")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WORK_ROOT_VARIABLE, str(folder / "work"))
        outputs = train(toy, folder, FixedLabels(), labels=toy[1].astype("float32"), epochs=8, batch_size=4)
    return outputs.model


@pytest.fixture(scope="session")
def split(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled split, as stage `format` writes it."""
    folder = tmp_path_factory.mktemp("data") / "val"
    toy[0].write(folder / "images.parquet")
    write_labels(folder / "labels.zarr", toy[1], toy[0], [ClassName(name, name) for name in CLASSES])
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command of the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("DEVICE", "THREADS", "WORKERS"):
        monkeypatch.setenv(f"CLIPDISTILL_{name}", {"DEVICE": "cpu"}.get(name, "1"))

    def call(*arguments: str | Path) -> Ran:
        monkeypatch.setattr("sys.argv", ["clipdistill", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return Ran(code if isinstance(code, int) else int(bool(code)), *capfd.readouterr())

    return call
