import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipdistill.errors import ParamsError
from clipdistill.params import StudentParams
from clipdistill.students import backbones, classifier

FAMILIES = [
    "resnet18",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "swin_t",
]


def build(
    backbone: str = "shufflenet_v2_x0_5", stride: int = 32, classes: int = 5, seed: int = 0
) -> classifier.Student:
    return classifier.build(StudentParams(backbone=backbone, output_stride=stride), classes, seed)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_logits_are_the_average_of_the_activation_map(backbone: str) -> None:
    student = build(backbone).eval()
    logits, cam = student(torch.randn(2, 3, 96, 96))
    assert cam.shape == (2, 5, 3, 3)
    assert logits.dtype == cam.dtype == torch.float32
    torch.testing.assert_close(logits, cam.mean(dim=(2, 3)))


def test_logits_are_those_of_a_pooled_linear_classifier() -> None:
    student = build().eval()
    images = torch.randn(2, 3, 64, 64)
    pooled = student.features(images).mean(dim=(2, 3))
    expected = pooled @ student.head.weight.flatten(1).T + student.head.bias
    torch.testing.assert_close(student(images)[0], expected)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize(("stride", "side"), [(32, 3), (16, 6), (8, 12)])
def test_output_strides_of_residual_networks(backbone: str, stride: int, side: int) -> None:
    _, cam = build(backbone, stride).eval()(torch.randn(1, 3, 96, 96))
    assert cam.shape == (1, 5, side, side)


def test_an_output_stride_changes_no_weight() -> None:
    first, second = (build("resnet18", stride).state_dict() for stride in (32, 8))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_other_backbones_refuse_other_strides() -> None:
    with pytest.raises(ParamsError, match=r"output_stride: mobilenet_v3_small has no other than 32, found 16"):
        build("mobilenet_v3_small", 16)


@pytest.mark.parametrize(
    ("name", "reason"), [("vit_b_16", "gives no feature map"), ("resnet19", "unknown to torchvision.*resnet18")]
)
def test_backbones_that_cannot_be_had_are_refused(name: str, reason: str) -> None:
    with pytest.raises(ParamsError, match=f"train.student.backbone: '{name}' .*{reason}"):
        build(name)


def test_every_supported_backbone_has_a_trunk() -> None:
    assert len(backbones.supported()) > 60


def test_weights_depend_on_the_seed_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, second, other = (build(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_the_head_computes_in_fp32_under_autocast() -> None:
    student = build().eval()
    with torch.autocast("cpu", torch.bfloat16):
        features = student.features(torch.randn(2, 3, 64, 64))
        logits, _ = student(torch.randn(2, 3, 64, 64))
    assert features.dtype == torch.bfloat16
    assert logits.dtype == torch.float32


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6))
def test_scores(row: list[float]) -> None:
    logits = torch.tensor([row])
    assert torch.equal(classifier.scores(logits, "sigmoid"), torch.sigmoid(logits))
    competing = classifier.scores(logits, "softmax")
    assert competing.sum().item() == pytest.approx(1, abs=1e-5)
