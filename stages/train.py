"""Stage train@METHOD: labels to a student; METHOD is cdul, dense, ccd, global or supervised. Also under torchrun."""

from pathlib import Path

from clipdistill import params, stage
from clipdistill.training.methods import train_method


def main() -> None:
    """Read the image tables and the method's labels; write students/<method>, refined/<method>.zarr and the curves."""
    (method,) = stage.arguments("METHOD")
    train_method(method, params.load(), [str(Path(__file__)), method])


if __name__ == "__main__":
    stage.run(main)
