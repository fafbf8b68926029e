"""Stage pseudo_label@METHOD: cosines to first labels; METHOD is global or cdul."""

import logging
import sys
from pathlib import Path

from clipdistill import params, stage, store
from clipdistill.datasets.table import ImageTable, read_labels
from clipdistill.training import pseudo_label

logger = logging.getLogger("clipdistill.stages.pseudo_label")


def main() -> None:
    """Read similarity.zarr; write labels/<method>.zarr and the report of its quality."""
    method = sys.argv[1]
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    table = ImageTable.load(paths.table("train"))
    similarity = store.read_group(paths.similarity("train"), {"table": table.fingerprint})
    labels = pseudo_label.first_labels(similarity, settings.pseudo_label)
    kept = (
        {"global": labels.whole}
        if method == "global"
        else {"global": labels.whole, "aggregate": labels.aggregate, "final": labels.final}
    )
    sources = ("text", "global", "snippets") if method == "cdul" else ("text", "global")
    used = {name: similarity.provenance[name] for name in sources}
    provenance = {**pseudo_label.scoring(method, settings.pseudo_label), **used}
    pseudo_label.write_labels(paths.labels(method), list(kept.values())[-1], table.fingerprint, provenance)
    truth = read_labels(paths.ground_truth("train"), table)
    quality = pseudo_label.label_quality(kept, truth, settings.evaluate.empty_class)
    logger.info("pseudo_label@%s: %s", method, ", ".join(f"{key} {value}" for key, value in quality.items()))
    if method == "cdul" and labels.share_of_maximum == 0:
        logger.warning("pseudo_label.cdul.threshold is above every score: the aggregate is the plain minimum")
    store.write_json(Path(f"metrics/labels/{method}.json"), {"train": quality})


if __name__ == "__main__":
    stage.run(main)
