"""Stage summary: the metrics files of all methods to the few figures that experiments are compared by."""

from pathlib import Path

from clipdistill import stage, store
from clipdistill.evaluation import summary


def main() -> None:
    """Read metrics/*.json, metrics/labels/ and metrics/train/; write metrics/summary.json."""
    metrics = Path("metrics")
    store.write_json(metrics / "summary.json", summary.figures(metrics))


if __name__ == "__main__":
    stage.run(main)
