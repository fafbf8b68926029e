"""What every stage script shares: its log, its exit code, and the arrangement of the artifacts' paths."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clipdistill import distributed
from clipdistill.errors import ClipdistillError, ParamsError


def run(main: Callable[[], None]) -> None:
    """Run a stage: log to stderr; for a problem that a person can mend, its text alone and its exit code."""
    level = logging.INFO if distributed.rank() == 0 else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("clipdistill").setLevel(level)
    try:
        main()
    except ClipdistillError as error:
        sys.exit(_report(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where it was\n")
        sys.exit(130)


def arguments(*names: str) -> list[str]:
    """Words that follow the stage's name on its command line, one for each of `names`.

    Raises:
        ParamsError: there are more or fewer; the text says what the stage takes.
    """
    found = sys.argv[1:]
    if len(found) != len(names):
        stage = Path(sys.argv[0]).stem
        raise ParamsError(f"stages/run {stage} takes {' '.join(names)}, found {' '.join(found) or 'nothing'}")
    return found


def _report(error: ClipdistillError) -> int:
    sys.stderr.write(f"error: {error}\n")
    return error.exit_code


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the artifacts of a data set lie (docs/design.md has the table).

    Attributes:
        dataset: `dataset.name`.
    """

    dataset: str

    @property
    def data(self) -> Path:
        """Folder of the image tables, the ground truth and the class list."""
        return Path("data") / self.dataset

    @property
    def cache(self) -> Path:
        """Folder of everything that is derived."""
        return Path("cache") / self.dataset

    @property
    def classes(self) -> Path:
        """Class list."""
        return self.data / "classes.yaml"

    @property
    def text(self) -> Path:
        """Text embeddings."""
        return self.cache / "text.zarr"

    def table(self, split: str) -> Path:
        """Image table of a split."""
        return self.data / split / "images.parquet"

    def ground_truth(self, split: str) -> Path:
        """Ground truth of a split."""
        return self.data / split / "labels.zarr"

    def embeddings(self, split: str, kind: str) -> Path:
        """Embeddings of a split's views."""
        return self.cache / split / f"{kind}.zarr"

    def similarity(self, split: str) -> Path:
        """Cosines of a split."""
        return self.cache / split / "similarity.zarr"

    def labels(self, method: str) -> Path:
        """First labels of the training split."""
        return self.cache / "train" / "labels" / f"{method}.zarr"

    def model(self, method: str) -> Path:
        """Folder of a trained student."""
        return self.cache / "models" / method

    def predictions(self, method: str) -> Path:
        """Scores of a method on the evaluation split."""
        return self.cache / "val" / "predictions" / f"{method}.zarr"

    def ccd(self, update: int) -> Path:
        """Folder of CCD after an update of the labels, from 1 (0: before the first): labels, student, views."""
        return self.cache / "ccd" / str(update)

    def ccd_labels(self, update: int) -> Path:
        """CCD's labels after an update."""
        return self.ccd(update) / "labels.zarr"

    def ccd_student(self, update: int) -> Path:
        """The student that the next training of CCD goes on from, beside the labels it is to learn."""
        return self.ccd(update) / "student"

    def ccd_plan(self, update: int) -> Path:
        """File that says whether a round of CCD after the first is run."""
        return self.cache / "ccd" / "plan" / f"{update}.json"

    @property
    def cam_views(self) -> Path:
        """Boxes that the student points at in the training images, before the first update."""
        return self.cache / "train" / "views" / "cam.zarr"

    def refined(self, method: str) -> Path:
        """Labels of the training split after every refinement."""
        return self.cache / "train" / "refined" / f"{method}.zarr"

    def curves(self, method: str) -> Path:
        """Folder of the curves of a training."""
        return Path("metrics") / "curves" / method
