"""Stage seen@mkt: ground truth of the training images for the labels that training may see."""

from clipdistill import params, stage
from clipdistill.training.mkt_vocabulary import write_seen


def main() -> None:
    """Read data/<dataset>/open; write labels/ground_truth.zarr."""
    stage.arguments("mkt")
    write_seen(stage.Paths(params.load().dataset.name))


if __name__ == "__main__":
    stage.run(main)
