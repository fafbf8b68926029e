"""Stage round@UPDATE: a round of CCD after the first, or nothing beyond ccd.update_rounds. Also under torchrun."""

from pathlib import Path

from clipdistill import params, stage
from clipdistill.training.ccd_rounds import later_round


def main() -> None:
    """Read the images, text.zarr and ccd/<UPDATE - 1>; write ccd/<UPDATE>: student/, views, cam, labels.zarr."""
    (update,) = stage.arguments("UPDATE")
    later_round(int(update), params.load(), [str(Path(__file__)), update], [str(Path(__file__).with_name("embed.py"))])


if __name__ == "__main__":
    stage.run(main)
