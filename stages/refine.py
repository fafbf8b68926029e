"""Stage refine@ccd: the first update of the labels, by what CLIP says of the views that the student pointed at."""

from clipdistill import params, stage
from clipdistill.training import ccd_rounds


def main() -> None:
    """Read ccd/0, cam.zarr and text.zarr; write ccd/1: labels.zarr, and the student to go on from."""
    stage.arguments("ccd")
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    before, out = paths.ccd(0), paths.ccd(1)
    embeddings = paths.embeddings("train", "cam")
    ccd_rounds.refine(before / ccd_rounds.LABELS, embeddings, out / ccd_rounds.LABELS, 1, settings)
    ccd_rounds.hand_on_student(before, out)


if __name__ == "__main__":
    stage.run(main)
