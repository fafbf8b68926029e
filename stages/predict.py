"""Stage predict@METHOD: a student's scores of the evaluation split; METHOD is cdul, global or supervised."""

import sys

import numpy as np

from clipdistill import distributed, params, stage, store
from clipdistill.datasets.table import ImageTable
from clipdistill.students import untrained
from clipdistill.training.predict import predict_scores


def main() -> None:
    """Read models/<method>; write predictions/<method>.zarr."""
    method = sys.argv[1]
    paths = stage.Paths(params.load().dataset.name)
    table = ImageTable.load(paths.table("val"))
    provenance = {"table": table.fingerprint, "method": method}
    if reason := untrained.reason(paths.model(method)):
        scores, provenance = np.empty((0, 0), dtype=np.float32), {**provenance, "untrained": reason}
    else:
        scores = predict_scores(paths.model(method), table, distributed.Compute.load())
    store.write_group(paths.predictions(method), {"scores": scores}, provenance)


if __name__ == "__main__":
    stage.run(main)
