"""Stage similarity: embeddings to cosines with every class."""

from clipdistill import params, stage
from clipdistill.clip.similarity import write_similarity
from clipdistill.datasets.table import SPLITS, ImageTable
from clipdistill.work import release


def main() -> None:
    """Read text.zarr, global.zarr and snippets.zarr; write similarity.zarr of every split."""
    paths = stage.Paths(params.load().dataset.name)
    for split in SPLITS:
        table = ImageTable.load(paths.table(split))
        views = [paths.embeddings(split, kind) for kind in ("global", "snippets")]
        write_similarity(paths.text, *views, table, paths.similarity(split))
        for artifact in views:
            release(artifact)


if __name__ == "__main__":
    stage.run(main)
