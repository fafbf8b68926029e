"""What every stage script shares: its log, its exit code, its time, and the arrangement of the artifacts' paths."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from clipdistill import distributed, params
from clipdistill.errors import ArtifactError, ClipdistillError, ParamsError, printable

logger = logging.getLogger(__name__)

_counts: Counter[str] = Counter()

# Of files that are locked while a stage runs.
_LOCKS = Path(".work") / "locks"


def run(main: Callable[[], None]) -> None:
    """Run a stage: log to stderr; for a problem that a person can mend, its text alone and its exit code."""
    level = logging.INFO if distributed.rank() == 0 else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("clipdistill").setLevel(level)
    distributed.end_with_launcher()
    try:
        # Read before the stage begins: a person may change the file while it runs.
        times = Paths(params.load().dataset.name).times
        with _alone():
            begin = time.monotonic()
            main()
    except ClipdistillError as error:
        sys.exit(_report(error))
    except OSError as error:
        # Without a file it is no matter of a person's.
        if error.filename is None:
            raise
        sys.exit(_report(ArtifactError(f"{printable(os.fsdecode(error.filename))}: {error.strerror}")))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where it was\n")
        sys.exit(130)
    if distributed.is_leader():
        _record_time(times, time.monotonic() - begin)


@contextmanager
def _alone() -> Iterator[None]:
    """Let nobody else run this stage in this checkout meanwhile, and wait for whoever does.

    The system lets go of the lock when the process ends, however it ends. A stage may outlive a DVC that was killed:
    the next `dvc repro` must not work beside it.
    """
    if not distributed.is_leader():
        yield
        return
    path = _LOCKS / _name()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="utf-8")
    except OSError as error:
        logger.warning("%s: cannot be had, so nothing keeps two runs of this stage apart (%s)", path, error.strerror)
        yield
        return
    with stream:
        _take(stream)
        yield


def _take(stream: TextIO) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.seek(0)
        logger.warning("%s: %s runs this stage already; waiting until it has ended", _name(), stream.read().strip())
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:
        # Some network file systems have none.
        logger.warning("%s: cannot be locked, so nothing keeps two runs apart (%s)", stream.name, error.strerror)
        return
    stream.seek(0)
    stream.truncate()
    stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    stream.flush()


def _name() -> str:
    """The stage's name in dvc.yaml."""
    return "@".join([Path(sys.argv[0]).stem, *sys.argv[1:2]])


def count(what: str, number: int) -> None:
    """Add to what this run of the stage has handled, for its record: `count("views", 36000)`.

    Only what is done now counts, not what an unfinished run has left; and only in the process that began the stage.

    Args:
        what: a plural: images, views.
        number: how many.
    """
    _counts[what] += number


def _record_time(folder: Path, seconds: float) -> None:
    """Leave the record of a stage that went well, under the name that it has in dvc.yaml."""
    path = folder / f"{_name()}.json"
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"seconds": round(seconds, 3), "finished": finished, "counts": dict(_counts)}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        # The stage's work is done and whole: a record that only the report reads must not spoil it.
        logger.warning("%s: the time of the stage is not recorded (%s)", path, error.strerror)


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

    @property
    def open_classes(self) -> Path:
        """Labels of the open vocabulary."""
        return self.data / "open" / "classes.yaml"

    def open_labels(self, split: str) -> Path:
        """Ground truth of the open vocabulary's labels."""
        return self.data / "open" / f"{split}.zarr"

    def embeddings(self, split: str, kind: str) -> Path:
        """Embeddings of a split's views."""
        return self.cache / split / f"{kind}.zarr"

    def similarity(self, split: str, kind: str = "snippets") -> Path:
        """Cosines of a split: of the whole images, and of one kind of views."""
        return self.cache / split / ("similarity.zarr" if kind == "snippets" else f"{kind}_similarity.zarr")

    def labels(self, method: str) -> Path:
        """First labels of the training split."""
        return self.cache / "train" / "labels" / f"{method}.zarr"

    def student(self, method: str) -> Path:
        """Folder that a training leaves: the student, and where a rule chose its epoch, the scores after each."""
        return self.cache / "students" / method

    def model(self, method: str) -> Path:
        """Folder of a student that is ready for use: with its figures and a model card."""
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
    def mkt_prompted(self) -> Path:
        """Folder of MKT's student after its prompts were tuned; `student("mkt")` is the one before."""
        return self.cache / "students" / "mkt_prompted"

    def captions(self, split: str) -> Path:
        """Table of captioned images of a split."""
        return self.cache / "ttd" / "captions" / f"{split}.parquet"

    @property
    def ttd_adapter(self) -> Path:
        """Folder of the adapter that TTD has trained."""
        return self.cache / "ttd" / "adapter"

    @property
    def ttd_tags(self) -> Path:
        """Figures of tags and of captions' maps."""
        return self.cache / "ttd" / "tags.json"

    @property
    def ttd_segmentation(self) -> Path:
        """Figures of segmentation."""
        return self.cache / "ttd" / "segmentation.json"

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

    @property
    def times(self) -> Path:
        """Folder of what each stage took when it last ran here: no output, since equal inputs must give equal bytes."""
        return Path(".work") / "times" / self.dataset
