"""Stage evaluate@ttd: figures of tags, captions' maps and segmentation in one file."""

from pathlib import Path

from clipdistill import params, stage, store
from clipdistill.evaluation.summary import read_metrics


def main() -> None:
    """Read <cache>/ttd/tags.json and segmentation.json; write metrics/ttd.json."""
    stage.arguments("ttd")
    paths = stage.Paths(params.load().dataset.name)
    figures = read_metrics(paths.ttd_tags) | read_metrics(paths.ttd_segmentation)
    store.write_json(Path("metrics/ttd.json"), figures)


if __name__ == "__main__":
    stage.run(main)
