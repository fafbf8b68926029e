"""Stage warmup@ccd: initial labels, debiased, and the student that learns from them. Also under torchrun."""

from pathlib import Path

from clipdistill import params, stage
from clipdistill.training.ccd_warmup import warm_up


def main() -> None:
    """Read the image tables and labels/<ccd.initial>.zarr; write ccd/0: labels.zarr and student/."""
    stage.arguments("ccd")
    warm_up(params.load(), [str(Path(__file__)), "ccd"])


if __name__ == "__main__":
    stage.run(main)
