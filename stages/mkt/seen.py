"""Stage seen@mkt: labels of the training images in which nothing is of an unseen label."""

from clipdistill import params, stage
from clipdistill.training.mkt_vocabulary import write_seen


def main() -> None:
    """Read data/<dataset>/open and similarity.zarr; write labels/ground_truth.zarr and labels/seen_classes.zarr."""
    stage.arguments("mkt")
    write_seen(params.load())


if __name__ == "__main__":
    stage.run(main)
