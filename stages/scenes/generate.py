"""Stage generate: the data set `scenes` in the VOC layout, and the captioned images for the tiny CLIP."""

from pathlib import Path

from clipdistill import distributed, params, stage
from clipdistill.datasets.scenes.captions import generate_captions
from clipdistill.datasets.scenes.voc_layout import generate_scenes

RAW = Path("data/raw")


def main() -> None:
    """Read params; write data/raw/scenes and data/raw/scenes-captions."""
    settings = params.load().scenes
    workers = distributed.Compute.load().workers or distributed.cores()
    generate_scenes(settings, RAW / "scenes", workers)
    generate_captions(settings, RAW / "scenes-captions", workers)


if __name__ == "__main__":
    stage.run(main)
