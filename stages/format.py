"""Stage format: a raw data set to image tables, ground truth and the class list."""

from pathlib import Path

from clipdistill import distributed, params, stage, store
from clipdistill.datasets.format import format_dataset


def main() -> None:
    """Read params and the raw files; write data/<name> and metrics/format.json."""
    settings = params.load().dataset
    workers = distributed.Compute.load().workers or distributed.cores()
    report = format_dataset(settings, stage.Paths(settings.name).data, workers)
    store.write_json(Path("metrics/format.json"), report)


if __name__ == "__main__":
    stage.run(main)
