"""Stage refine@ccd: the first update of the labels, by what CLIP says of the views that the student pointed at."""

import shutil

from clipdistill import params, stage
from clipdistill.training.ccd_refine import refine
from clipdistill.work import release


def main() -> None:
    """Read ccd/0, cam.zarr and text.zarr; write ccd/1: labels.zarr, and the student to go on from."""
    stage.arguments("ccd")
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    refine(paths.ccd_labels(0), paths.embeddings("train", "cam"), paths.ccd_labels(1), 1, settings)
    release(paths.embeddings("train", "cam"))
    shutil.copytree(paths.ccd_student(0), paths.ccd_student(1), dirs_exist_ok=True)


if __name__ == "__main__":
    stage.run(main)
