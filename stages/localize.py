"""Stage localize@ccd: the places that the warmed-up student points at in the training images. Also under torchrun."""

from pathlib import Path

from clipdistill import distributed, params, stage
from clipdistill.training.localize import point


def main() -> None:
    """Read the training images and ccd/0/student; write train/views/cam.zarr."""
    stage.arguments("ccd")
    settings, compute = params.load(), distributed.Compute.load()
    paths = stage.Paths(settings.dataset.name)
    if not distributed.launch_where_several([str(Path(__file__)), "ccd"], compute):
        point(paths.ccd_student(0), paths.cam_views, settings, compute)


if __name__ == "__main__":
    stage.run(main)
