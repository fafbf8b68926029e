"""Stage tags: captioned images to caption tables, with the candidate words of every caption."""

from pathlib import Path

from clipdistill import distributed, params, stage, store
from clipdistill.datasets.captions.collect import collect_all


def main() -> None:
    """Read params and the captions; write cache/<dataset>/ttd/captions and metrics/ttd/captions.json."""
    settings = params.load()
    workers = distributed.Compute.load().workers or distributed.cores()
    report = collect_all(settings.ttd.captions, settings.dataset.name, workers)
    stage.count("captions", sum(report[split]["pairs"] for split in ("train", "val")))
    store.write_json(Path("metrics/ttd/captions.json"), report)


if __name__ == "__main__":
    stage.run(main)
