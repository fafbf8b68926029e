"""CCD's beginning: the initial labels, debiased, and the student that learns from them and points first."""

from __future__ import annotations

import torch

from clipdistill import distributed
from clipdistill.datasets.table import ImageTable
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.training.ccd_labels import CcdLabels
from clipdistill.training.regime import Regime
from clipdistill.training.supervision import FixedLabels
from clipdistill.training.train import Outputs, launch, stored_labels, train_by_params


def warm_up(params: Params, command: list[str]) -> None:
    """Debias the initial labels, and train the student that points in the first round.

    Args:
        params: all parameters.
        command: the stage's script and its arguments, started once a process where there are several.
    """
    paths, compute = Paths(params.dataset.name), distributed.Compute.load()
    table = ImageTable.load(paths.table("train"))
    if distributed.is_leader():
        initial_labels(params, paths, table).write(paths.ccd_labels(0), table, 0)
    if launch(command, params.train.recipe.batch_size, compute):
        return
    with distributed.process_group(compute.torch_device()):
        # Processes that torchrun started wait for the labels of the first one.
        distributed.barrier()
        train_by_params(
            params,
            table,
            CcdLabels.read(paths.ccd_labels(0), table).labels.numpy(),
            epochs=params.ccd.train.warmup_epochs,
            supervision=FixedLabels(),
            outputs=Outputs(paths.ccd_student(0), thresholds=False),
            regime=Regime(boost=params.ccd.train.boost),
            stage="warmup/ccd",
            compute=compute,
        )


def initial_labels(params: Params, paths: Paths, table: ImageTable) -> CcdLabels:
    """Labels before the first update.

    CLIP's bias is that of its scores of the whole images as the softmax gives them: what a standardisation has made of
    them has none. So labels of the whole image are taken as they were before it, too.
    """
    whole = torch.from_numpy(stored_labels("global", paths, table).read("scores"))
    if params.ccd.initial == "global":
        return CcdLabels.initial(whole, whole, params.ccd)
    first = stored_labels(params.ccd.initial, paths, table).read("labels")
    return CcdLabels.initial(torch.from_numpy(first), whole, params.ccd)
