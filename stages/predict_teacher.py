"""Stage predict_teacher@METHOD: cosines of the evaluation split to scores; METHOD is teacher, _views or _dense."""

from clipdistill import params, stage, store
from clipdistill.datasets.table import ImageTable
from clipdistill.training import pseudo_label


def main() -> None:
    """Read similarity.zarr, or dense_similarity.zarr; write predictions/<method>.zarr."""
    (method,) = stage.arguments("METHOD")
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    table = ImageTable.load(paths.table("val"))
    kind = "dense" if method == "teacher_dense" else "snippets"
    similarity = store.read_group(paths.similarity("val", kind), {"table": table.fingerprint})
    scores = pseudo_label.first_labels(similarity, settings.pseudo_label)
    chosen = scores.whole if method == "teacher" else scores.final
    provenance = {"table": table.fingerprint, **pseudo_label.scoring(method, settings.pseudo_label)}
    store.write_group(paths.predictions(method), {"scores": chosen.numpy()}, provenance)


if __name__ == "__main__":
    stage.run(main)
