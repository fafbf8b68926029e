"""What a trained student can be given: a finer map of the same features, and the boost of its map's positive parts."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clipdistill.errors import ParamsError
from clipdistill.params import StudentParams
from clipdistill.students import backbones, classifier, model_folder, student_yaml

PARAMS = StudentParams(output_stride=32, backbone="shufflenet_v2_x0_5", image_size=64)


@cache
def trained(name: str) -> nn.Module:
    """A network whose batch normalisation has seen something: the borders must fit with its offsets too."""
    torch.manual_seed(1)
    network = backbones.create(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
    return network.double().eval()


def features(name: str, stride: int) -> nn.Sequential:
    network = backbones.create(name).double().eval()
    network.load_state_dict(trained(name).state_dict())
    return backbones.feature_extractor(name, network, stride)


def maps(name: str, stride: int, output_stride: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The maps of one network before and after."""
    network = features(name, stride)
    images = torch.randn(1, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        coarse = network(images)
        backbones.refine_map(network, name, stride, output_stride)
        return coarse, network(images)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize(("stride", "output_stride"), [(32, 16), (32, 8), (16, 8)])
def test_the_finer_map_holds_the_coarse_one(name: str, stride: int, output_stride: int) -> None:
    coarse, fine = maps(name, stride, output_stride, 64, 64)
    step = stride // output_stride
    assert fine.shape[2:] == (64 // output_stride, 64 // output_stride)
    assert coarse.std() > 1e-3
    torch.testing.assert_close(fine[:, :, ::step, ::step], coarse)
    # The cells between are other places, not copies.
    assert not torch.allclose(fine[:, :, 1::step, ::step], coarse)


@pytest.mark.parametrize(("stride", "output_stride"), [(32, 16), (32, 8), (16, 8)])
@pytest.mark.parametrize(("height", "width"), [(72, 104), (33, 97)])
def test_sides_that_the_stride_does_not_divide(stride: int, output_stride: int, height: int, width: int) -> None:
    coarse, fine = maps("resnet18", stride, output_stride, height, width)
    step = stride // output_stride
    torch.testing.assert_close(fine[:, :, ::step, ::step], coarse)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_an_equal_stride_changes_nothing(stride: int) -> None:
    coarse, fine = maps("resnet18", stride, stride, 64, 64)
    assert torch.equal(fine, coarse)


def test_a_network_of_another_family_keeps_its_map() -> None:
    network = backbones.feature_extractor(PARAMS.backbone, backbones.create(PARAMS.backbone), 32).eval()
    images = torch.randn(1, 3, 64, 64)
    coarse = network(images)
    backbones.refine_map(network, PARAMS.backbone, 32, 32)
    assert torch.equal(network(images), coarse)


def test_no_weight_is_touched() -> None:
    network = features("resnet18", 32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    backbones.refine_map(network, "resnet18", 32, 8)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "stride", "output_stride", "cure"),
    [
        ("resnet18", 8, 16, "give it 8"),
        ("resnet18", 16, 32, "give it 16"),
        ("shufflenet_v2_x0_5", 32, 16, r"give it 32 \(or use a resnet\)"),
    ],
)
def test_maps_that_cannot_be_had_are_refused(name: str, stride: int, output_stride: int, cure: str) -> None:
    network = backbones.feature_extractor(name, backbones.create(name), stride).eval()
    images = torch.randn(1, 3, 64, 64)
    before = network(images)
    with pytest.raises(ParamsError, match=rf"ccd\.localize\.output_stride: {name} .*{output_stride} pixels.*{cure}"):
        backbones.refine_map(network, name, stride, output_stride)
    assert torch.equal(network(images), before)


def boosted(alpha: float) -> classifier.Student:
    return classifier.build(PARAMS, 5, seed=0, boost=alpha).eval()


@pytest.mark.parametrize("alpha", [0.8, 3.0])
def test_the_logits_are_the_average_of_the_boosted_map(alpha: float) -> None:
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        logits, cam = boosted(alpha)(images)
        _, plain = boosted(1.0)(images)
    assert (plain > 0).any()
    assert (plain < 0).any()
    torch.testing.assert_close(cam, plain.clamp(min=0) * alpha + plain.clamp(max=0))
    torch.testing.assert_close(logits, cam.mean(dim=(2, 3)))


def test_a_boost_of_one_is_the_plain_classifier() -> None:
    images, plain = torch.randn(2, 3, 64, 64), classifier.build(PARAMS, 5, seed=0).eval()
    assert all(torch.equal(a, b) for a, b in zip(plain(images), boosted(1.0)(images), strict=True))
    pooled = plain.features(images).mean(dim=(2, 3))
    expected = pooled @ plain.head.weight.flatten(1).T + plain.head.bias
    torch.testing.assert_close(boosted(1.0)(images)[0], expected)


def test_the_boost_is_saved_with_the_student(tmp_path: Path) -> None:
    student, names = boosted(3.0), list("abcde")
    model_folder.save(tmp_path, student, student_yaml.Card.of(student, PARAMS, "sigmoid", names, {}))
    loaded, card = model_folder.load(tmp_path)
    assert card.boost == loaded.boost == 3.0
    images = torch.randn(2, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(loaded(images), student(images), strict=True))


def test_a_student_learns_through_the_boost() -> None:
    student = boosted(3.0)
    logits, cam = student(torch.randn(2, 3, 64, 64))
    logits.sum().backward()
    # Each cell hands on 1 / (h w), times 3 where its value is positive.
    share = torch.where(cam > 0, 3.0, 1.0).mean(dim=(2, 3)).sum(dim=0)
    assert student.head.bias is not None
    torch.testing.assert_close(student.head.bias.grad, share)
