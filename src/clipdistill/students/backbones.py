"""Torchvision's classification networks without their classifiers: images in, a feature map out.

The modules keep the names that torchvision gives them, so that published weights fit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from difflib import get_close_matches
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from clipdistill.errors import ParamsError

STRIDE = 32
"""Pixels a cell of every network's own feature map."""

_RESNETS = ("resnet", "resnext", "wide_resnet")


def create(name: str) -> nn.Module:
    """Build a network of torchvision by name, with its classifier and random weights.

    Args:
        name: for example "resnet18".

    Raises:
        ParamsError: torchvision has no such network, or none whose last feature map can be had.
    """
    if name not in supported():
        reason = "gives no feature map" if name in torchvision.models.list_models() else "is unknown to torchvision"
        near = get_close_matches(name, supported(), n=5) or ["resnet18", "resnet101", "convnext_tiny", "swin_t"]
        raise ParamsError(
            f"train.student.backbone: {name!r} {reason}; for example {', '.join(near)}, and other sizes of the "
            f"families {', '.join(_TRUNKS)}"
        )
    network: nn.Module = torchvision.models.get_model(name, weights=None)
    return network


def supported() -> list[str]:
    """Names of the networks that `create` builds."""
    return [name for name in torchvision.models.list_models(module=torchvision.models) if _trunk_of(name)]


def feature_extractor(name: str, network: nn.Module, output_stride: int) -> nn.Sequential:
    """Take the classifier off a network.

    Args:
        name: what `create` built it from.
        network: its modules are shared with the result, weights included.
        output_stride: pixels a cell of the feature map; 16 and 8 set the stride of a residual network's last stage,
            or last two, to 1.

    Returns:
        [B, 3, S, S] to [B, F, h, h], where h is S / output_stride, rounded up in residual networks.

    Raises:
        ParamsError: the network has no other output stride than its own.
    """
    trunk = _trunk_of(name)
    if trunk is None:
        raise ParamsError(f"train.student.backbone: {name!r} gives no feature map")
    if output_stride != STRIDE:
        if not name.startswith(_RESNETS):
            raise ParamsError(
                f"train.student.output_stride: {name} has no other than {STRIDE}, found {output_stride}; "
                "16 and 8 are for residual networks (resnet, resnext, wide_resnet)"
            )
        _keep_resolution(network, ["layer4"] if output_stride == 16 else ["layer3", "layer4"])
    return trunk(network)


def finer_stride(name: str, stride: int, wanted: int | Literal["auto"]) -> int:
    """Pixels a cell of a finer map: as wanted, or half the network's own where it has a finer one.

    Args:
        name: of the backbone.
        stride: its own.
        wanted: pixels, or auto.
    """
    if wanted != "auto":
        return wanted
    return max(8, stride // 2) if name.startswith(_RESNETS) else stride


def refine_map(features: nn.Sequential, name: str, stride: int, output_stride: int) -> None:
    """Give a trained feature extractor a finer map, in place: the same features at more places.

    Where a stage no longer strides, the convolutions after that place are dilated (the hole algorithm: Chen et al.,
    ICLR 2015, arXiv 1412.7062). Every second (or fourth) cell of the new map is a cell of the old one, so no weight has
    to be trained anew.

    Args:
        features: from `feature_extractor`.
        name: what it was built from.
        stride: pixels a cell of its map as it is.
        output_stride: as it is to be, at most `stride`.

    Raises:
        ParamsError: a coarser map is asked for, or the network is no residual one.
    """
    if output_stride == stride:
        return
    if output_stride > stride or not name.startswith(_RESNETS):
        raise ParamsError(
            f"ccd.localize.output_stride: {name} with train.student.output_stride {stride} has no map of "
            f"{output_stride} pixels a cell; give it {stride}"
            + ("" if output_stride > stride else " (or use a resnet)")
        )
    dilation = 1
    for stage in ["layer4"] if output_stride == 16 else ["layer3", "layer4"]:
        for module in features.get_submodule(stage).modules():
            dilation = _dilate(module, dilation)


def _dilate(module: nn.Module, dilation: int) -> int:
    """Take a convolution's stride away, or spread its kernel; returns the dilation of what comes after it."""
    if not isinstance(module, nn.Conv2d):
        return dilation
    spatial = module.kernel_size == (3, 3)
    strided = module.stride == (2, 2)
    if strided:
        module.stride = (1, 1)
    if spatial:
        module.dilation = module.padding = (dilation, dilation)
    return 2 * dilation if strided and spatial else dilation


def width(features: nn.Module) -> int:
    """Channels F of a feature map."""
    training = features.training
    with torch.no_grad():
        channels = features.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    features.train(training)
    return int(channels)


def _keep_resolution(network: nn.Module, stages: list[str]) -> None:
    for stage in stages:
        for module in network.get_submodule(stage).modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)


class _ToChannelsFirst(nn.Module):
    """[B, h, w, F] to [B, F, h, w]."""

    def forward(self, features: Tensor) -> Tensor:
        return features.permute(0, 3, 1, 2)


Trunk = Callable[[nn.Module], nn.Sequential]


def _children(*names: str) -> Trunk:
    return lambda network: nn.Sequential(OrderedDict((name, network.get_submodule(name)) for name in names))


def _densenet(network: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(features=network.get_submodule("features"), relu=nn.ReLU(inplace=True)))


def _convnext(network: nn.Module) -> nn.Sequential:
    # Its normalisation stands after the pooling; on the map it is needed before, since the head does not follow it.
    norm = network.get_submodule("classifier.0")
    return nn.Sequential(
        OrderedDict(features=network.get_submodule("features"), classifier=nn.Sequential(OrderedDict({"0": norm})))
    )


def _swin(network: nn.Module) -> nn.Sequential:
    parts = {name: network.get_submodule(name) for name in ("features", "norm")}
    return nn.Sequential(OrderedDict(parts, channels_first=_ToChannelsFirst()))


_RESNET = _children("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_FEATURES = _children("features")
_TRUNKS: dict[str, Trunk] = {
    **dict.fromkeys(_RESNETS, _RESNET),
    **dict.fromkeys(("efficientnet", "mobilenet", "vgg"), _FEATURES),
    "convnext": _convnext,
    "densenet": _densenet,
    "mnasnet": _children("layers"),
    "regnet": _children("stem", "trunk_output"),
    "shufflenet": _children("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
    "swin": _swin,
}


def _trunk_of(name: str) -> Trunk | None:
    return next((trunk for family, trunk in _TRUNKS.items() if name.startswith(family)), None)
