"""Stage localize@ccd: the places that the warmed-up student points at in the training images. Also under torchrun."""

from pathlib import Path

from clipdistill import distributed, params, stage
from clipdistill.training import ccd_rounds


def main() -> None:
    """Read the training images and ccd/0/student; write train/views/cam.zarr."""
    stage.arguments("ccd")
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    if not distributed.launch_where_several([str(Path(__file__)), "ccd"], distributed.Compute.load()):
        ccd_rounds.point(paths.ccd(0) / ccd_rounds.STUDENT, paths.cam_views, settings)


if __name__ == "__main__":
    stage.run(main)
