"""Stage pseudo_label@METHOD: the labels that training begins with; METHOD is global, cdul, dense or ccd."""

import logging
from pathlib import Path

from clipdistill import params, stage, store
from clipdistill.datasets.table import ImageTable, read_labels
from clipdistill.training import pseudo_label

logger = logging.getLogger("clipdistill.stages.pseudo_label")


def main() -> None:
    """Read similarity.zarr, or ccd's last update; write labels/<method>.zarr and the report of its quality."""
    (method,) = stage.arguments("METHOD")
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    table = ImageTable.load(paths.table("train"))
    labels = pseudo_label.labels_of(method, paths, table, settings)
    arrays = {"labels": labels.final} if labels.scores is None else {"labels": labels.final, "scores": labels.scores}
    store.write_group(paths.labels(method), {name: array.numpy() for name, array in arrays.items()}, labels.provenance)
    truth = read_labels(paths.ground_truth("train"), table)
    quality = pseudo_label.label_quality(labels.states, truth, settings.evaluate.empty_class)
    logger.info("pseudo_label@%s: %s", method, ", ".join(f"{key} {value}" for key, value in quality.items()))
    store.write_json(Path(f"metrics/labels/{method}.json"), {"train": quality})


if __name__ == "__main__":
    stage.run(main)
