"""Stage predict@mkt: scores of seen and unseen labels, of the student and of frozen CLIP."""

from clipdistill import distributed, params, stage, store
from clipdistill.datasets.table import ImageTable, read_classes
from clipdistill.students import open_card, untrained
from clipdistill.training.mkt_predict import predict_open


def main() -> None:
    """Read the evaluation images, students/mkt, students/mkt_prompted and the teacher; write predictions/mkt.zarr."""
    stage.arguments("mkt")
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    table = ImageTable.load(paths.table("val"))
    names = [item.name for item in read_classes(paths.open_classes)]
    provenance = {"table": table.fingerprint, "method": "mkt", "labels": names}
    if reason := untrained.reason(paths.mkt_prompted):
        store.write_group(paths.predictions("mkt"), {}, provenance | {"untrained": reason})
        return
    scores = predict_open(settings, distributed.Compute.load())
    seen = open_card.read(paths.mkt_prompted).seen
    provenance["trained_on"] = {"labels": len(seen), "of_these": len(set(seen) & set(names))}
    stage.count("images", len(table))
    store.write_group(paths.predictions("mkt"), dict(scores), provenance)


if __name__ == "__main__":
    stage.run(main)
