"""Stage evaluate@METHOD: scores and ground truth of the evaluation split to metrics."""

from pathlib import Path

import numpy as np

from clipdistill import params, stage, store
from clipdistill.datasets.table import ImageTable, read_classes, read_labels
from clipdistill.evaluation import precision_recall, report


def main() -> None:
    """Read predictions/<method>.zarr and labels.zarr; write metrics/<method>.json and its plot files."""
    (method,) = stage.arguments("METHOD")
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    table = ImageTable.load(paths.table("val"))
    predictions = store.read_group(paths.predictions(method), {"table": table.fingerprint})
    names = [item.name for item in read_classes(paths.classes)]
    truth = read_labels(paths.ground_truth("val"), table)
    scores = predictions.read("scores")
    if "untrained" in predictions.provenance:
        # Nothing was predicted: evaluated as if nothing were known, which gives no figure at all.
        scores, truth = np.zeros(truth.shape, dtype=np.float32), np.full_like(truth, -1)
    epochs = None
    if "chosen" in predictions.names:
        epochs = report.Epochs(predictions.read("epochs"), int(predictions.read("chosen")[0]))
    own = predictions.read("thresholds").tolist() if "thresholds" in predictions.names else None
    metrics = Path("metrics")
    per_class = metrics / "average_precision" / f"{method}.csv"
    report.write(scores, truth, names, settings.evaluate, metrics / f"{method}.json", per_class, epochs, own)
    curve = precision_recall.micro_curve(scores, truth)
    precision_recall.write(metrics / "precision_recall" / f"{method}.csv", curve)


if __name__ == "__main__":
    stage.run(main)
