"""Stage similarity, similarity@dense: cosines of all views with every class."""

import sys

from clipdistill import params, stage
from clipdistill.clip.similarity import write_similarity
from clipdistill.datasets.table import SPLITS, ImageTable
from clipdistill.work import release


def main() -> None:
    """Read text.zarr, global.zarr and <kind>.zarr; write similarity.zarr of every split, or <kind>_similarity.zarr."""
    (kind,) = stage.arguments("KIND") if len(sys.argv) > 1 else ["snippets"]
    paths = stage.Paths(params.load().dataset.name)
    for split in SPLITS:
        table = ImageTable.load(paths.table(split))
        views = [paths.embeddings(split, name) for name in ("global", kind)]
        write_similarity(paths.text, *views, table, paths.similarity(split, kind))
        for artifact in views:
            release(artifact)


if __name__ == "__main__":
    stage.run(main)
