"""Batch normalisation over the batches of all processes, so that their number does not change a network's training."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch normalisation by one over all processes.

    PyTorch's own works on GPUs only.

    Args:
        network: changed in place; parameters, statistics and their names stay.
        device: where it runs.
    """
    from timm.layers import norm_act  # noqa: PLC0415 - timm is heavy

    ours: dict[type, type] = {nn.BatchNorm2d: SynchronisedBatchNorm, norm_act.BatchNormAct2d: SynchronisedBatchNormAct}
    if device.type == "cuda":
        # Not PyTorch's conversion, which forgets the activation that is part of many of timm's layers.
        converted: nn.Module = norm_act.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    for module in network.modules():
        if kind := ours.get(type(module)):
            module.__class__ = kind
    return network


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose mean and variance are those of all processes' images together."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalise [B, F, h, w]; B may differ between processes."""
        if not self.training:
            return super().forward(images)
        values = images.float()
        count = _sum(values.new_tensor(values.numel() / values.shape[1]))
        mean = _sum(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _sum(centred.square().sum(dim=(0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            if running is not None and self.momentum is not None:
                running.lerp_(value, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class SynchronisedBatchNormAct(SynchronisedBatchNorm):
    """The same with dropout and an activation after it: timm's `BatchNormAct2d`."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalise [B, F, h, w], then drop and activate."""
        activated: Tensor = self.get_submodule("act")(self.get_submodule("drop")(super().forward(images)))
        return activated


class _Sum(torch.autograd.Function):
    """Sum over all processes; so is its gradient, since each process's loss depends on every share."""

    @staticmethod
    def forward(_: Any, share: Tensor) -> Tensor:  # noqa: ANN401 - autograd's context
        total = share.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum(share: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(share)
    return total
