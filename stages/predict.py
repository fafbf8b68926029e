"""Stage predict@METHOD: a student's scores of the evaluation split; METHOD as in train@METHOD."""

import numpy as np

from clipdistill import distributed, params, stage, store
from clipdistill.datasets.table import ImageTable
from clipdistill.students import student_yaml, untrained
from clipdistill.training.predict import predict_scores
from clipdistill.training.train import EPOCHS


def main() -> None:
    """Read students/<method>; write predictions/<method>.zarr."""
    (method,) = stage.arguments("METHOD")
    paths = stage.Paths(params.load().dataset.name)
    table = ImageTable.load(paths.table("val"))
    provenance = {"table": table.fingerprint, "method": method}
    arrays: dict[str, store.Array] = {"scores": np.empty((0, 0), dtype=np.float32)}
    if reason := untrained.reason(paths.student(method)):
        provenance["untrained"] = reason
    else:
        thresholds = np.array(student_yaml.read(paths.student(method)).thresholds)
        scores = predict_scores(paths.student(method), table, distributed.Compute.load())
        stage.count("images", len(table))
        arrays = {"scores": scores, "thresholds": thresholds}
    if (epochs := paths.student(method) / EPOCHS).exists():
        # What the other epochs would have given goes with the chosen one's, for the report.
        group = store.read_group(epochs)
        arrays |= {"epochs": group.read("scores"), "chosen": group.read("chosen")}
    store.write_group(paths.predictions(method), arrays, provenance)


if __name__ == "__main__":
    stage.run(main)
