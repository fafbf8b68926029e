"""Stage tags: captioned images to caption tables, with the candidate words of every caption."""

import logging
from pathlib import Path

from clipdistill import distributed, params, stage, store
from clipdistill.datasets.captions.collect import collect_all
from clipdistill.datasets.captions.left_out import left_out
from clipdistill.students import untrained

logger = logging.getLogger("clipdistill.tags")

METRICS = Path("metrics/ttd/captions.json")


def main() -> None:
    """Read params and the captions; write cache/<dataset>/ttd/captions and metrics/ttd/captions.json."""
    settings = params.load()
    wanted, dataset = settings.ttd.captions, settings.dataset.name
    if reason := left_out(settings, wanted.root):
        logger.info("TTD is left out: %s", reason)
        untrained.mark(stage.Paths(dataset).captions("train").parent, reason)
        store.write_json(METRICS, {})
        return
    workers = distributed.Compute.load().workers or distributed.cores()
    report = collect_all(wanted, dataset, workers)
    stage.count("captions", sum(report[split]["pairs"] for split in ("train", "val")))
    store.write_json(METRICS, report)


if __name__ == "__main__":
    stage.run(main)
