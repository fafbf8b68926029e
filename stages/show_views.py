"""Stage show_views: pictures of what CCD's first update did to a few images."""

from pathlib import Path

from clipdistill import params, stage
from clipdistill.training.ccd_pictures import draw


def main() -> None:
    """Read ccd/0, ccd/1, the views and what CLIP said of them; write metrics/ccd_views/*.png."""
    stage.arguments()
    draw(params.load(), Path("metrics/ccd_views"))


if __name__ == "__main__":
    stage.run(main)
