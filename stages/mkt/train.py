"""Stage train@mkt: the image tower of an open-vocabulary student. Also under torchrun."""

from pathlib import Path

from clipdistill import params, stage
from clipdistill.training.mkt_student import train_mkt


def main() -> None:
    """Read the training images, the labels that mkt.supervision names, and the teacher; write students/mkt."""
    stage.arguments("mkt")
    train_mkt(params.load(), [str(Path(__file__)), "mkt"])


if __name__ == "__main__":
    stage.run(main)
