"""Stage tune_prompt@mkt: the words around the labels of an open-vocabulary student. Also under torchrun."""

from pathlib import Path

from clipdistill import params, stage
from clipdistill.training.mkt_prompt import tune_prompt


def main() -> None:
    """Read the training images, the same labels, and students/mkt; write students/mkt_prompted."""
    stage.arguments("mkt")
    tune_prompt(params.load(), [str(Path(__file__)), "mkt"])


if __name__ == "__main__":
    stage.run(main)
