"""Stage segment: segmentation by the names of classes, without the adapter and with it. Also under torchrun."""

import logging
from pathlib import Path

from clipdistill import distributed, params, stage, store
from clipdistill.datasets.captions.left_out import left_out
from clipdistill.students import untrained
from clipdistill.training import ttd_setup
from clipdistill.training.ttd_segment import check_masked, segment

logger = logging.getLogger("clipdistill.segment")

PICTURES = Path("metrics/segmentation")


def main() -> None:
    """Read images with masks, the teacher and its adapter; write <cache>/ttd/segmentation.json and pictures."""
    settings = params.load()
    paths = stage.Paths(settings.dataset.name)
    PICTURES.mkdir(parents=True, exist_ok=True)
    reason = untrained.reason(paths.ttd_adapter) or left_out(settings, settings.ttd.segment.root)
    if reason:
        logger.info("segmentation is left out: %s", reason)
        store.write_json(paths.ttd_segmentation, {})
        return
    compute = distributed.Compute.load()
    if distributed.launch_where_several([str(Path(__file__))], compute):
        return
    teachers = {"frozen": ttd_setup.plain_teacher, "ttd": ttd_setup.adapted_teacher}
    with distributed.process_group(compute.torch_device()):
        check_masked(settings, compute)
        figures = {name: segment(settings, load(settings), compute, PICTURES / name) for name, load in teachers.items()}
        if distributed.rank() == 0:
            store.write_json(paths.ttd_segmentation, {"segmentation": figures})
        distributed.barrier()


if __name__ == "__main__":
    stage.run(main)
