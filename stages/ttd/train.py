"""Stage train@ttd: an adapter of CLIP from captioned images. Also under torchrun."""

from pathlib import Path

from clipdistill import params, stage, store
from clipdistill.students import untrained
from clipdistill.training.ttd_adapter import METRICS, train_ttd


def main() -> None:
    """Read the training split's caption table and the teacher; write <cache>/ttd/adapter."""
    stage.arguments("ttd")
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    if reason := untrained.reason(paths.captions("train").parent):
        untrained.mark(paths.ttd_adapter, reason)
        store.write_json(paths.curves("ttd") / "metrics.json", {})
        store.write_json(METRICS, {})
        return
    train_ttd(settings, [str(Path(__file__)), "ttd"])


if __name__ == "__main__":
    stage.run(main)
