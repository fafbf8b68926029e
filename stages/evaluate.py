"""Stage evaluate@METHOD: scores and ground truth of the evaluation split to metrics."""

import sys
from pathlib import Path

from clipdistill import params, stage, store
from clipdistill.datasets.table import ImageTable, read_classes, read_labels
from clipdistill.evaluation import report


def main() -> None:
    """Read predictions/<method>.zarr and labels.zarr; write metrics/<method>.json and the plot of each class."""
    method = sys.argv[1]
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    table = ImageTable.load(paths.table("val"))
    predictions = store.read_group(paths.predictions(method), {"table": table.fingerprint})
    names = [item.name for item in read_classes(paths.classes)]
    truth = read_labels(paths.ground_truth("val"), table)
    metrics = Path("metrics")
    curve = metrics / "average_precision" / f"{method}.csv"
    report.write(predictions.read("scores"), truth, names, settings.evaluate, metrics / f"{method}.json", curve)


if __name__ == "__main__":
    stage.run(main)
