"""Stage generate_tagged: scenes with captions that name several objects, and masks."""

from pathlib import Path

from clipdistill import distributed, params, stage
from clipdistill.datasets.scenes.tagged import generate_tagged


def main() -> None:
    """Read params; write data/raw/scenes-tagged."""
    settings = params.load()
    workers = distributed.Compute.load().workers or distributed.cores()
    generate_tagged(settings.scenes, settings.tagged_scenes, Path(params.TAGGED_SCENES), workers)


if __name__ == "__main__":
    stage.run(main)
