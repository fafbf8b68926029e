"""Stage evaluate_tags: which words of a caption are chosen, and the caption's map, without the adapter and with it."""

from pathlib import Path

from clipdistill import params, stage, store
from clipdistill.students import untrained
from clipdistill.training.ttd_tags import evaluate_tags, write_sweep

SWEEP = Path("metrics/ttd/sweep.csv")


def main() -> None:
    """Read the caption tables, the teacher and its adapter; write <cache>/ttd/tags.json and metrics/ttd/sweep.csv."""
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    if untrained.reason(paths.ttd_adapter):
        store.write_json(paths.ttd_tags, {})
        write_sweep(SWEEP, [])
        return
    figures, rows = evaluate_tags(settings)
    store.write_json(paths.ttd_tags, figures)
    write_sweep(SWEEP, rows)


if __name__ == "__main__":
    stage.run(main)
