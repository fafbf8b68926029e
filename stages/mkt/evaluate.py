"""Stage evaluate@mkt: zero-shot and generalised zero-shot metrics on the evaluation split."""

from pathlib import Path

from clipdistill import params, stage, store
from clipdistill.datasets.open_vocabulary import twins
from clipdistill.datasets.table import ImageTable, read_classes, read_labels
from clipdistill.evaluation import open_report


def main() -> None:
    """Read predictions/mkt.zarr and the ground truth of the open vocabulary; write metrics/mkt.json."""
    stage.arguments("mkt")
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    table = ImageTable.load(paths.table("val"))
    labels = read_classes(paths.open_classes)
    group = store.read_group(paths.predictions("mkt"), {"table": table.fingerprint})
    figures = open_report.compare(
        {name: group.read(name) for name in group.names},
        read_labels(paths.open_labels("val"), table),
        [item.name for item in labels],
        [item.seen for item in labels],
        twins(labels),
        settings.mkt.top_k,
        settings.evaluate.empty_class,
    )
    if figures:
        figures["trained_on"] = group.provenance["trained_on"]
    store.write_json(Path("metrics/mkt.json"), figures)


if __name__ == "__main__":
    stage.run(main)
