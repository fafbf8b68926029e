from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from clipdistill.params import StudentParams
from clipdistill.students import classifier
from clipdistill.training.synchronised_norm import SynchronisedBatchNorm, synchronise


@pytest.fixture
def group() -> Iterator[None]:
    """A group of one process: the sums are this process's own, and so the plain layer is the reference."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
def test_equals_plain_batch_normalisation(dtype: torch.dtype, kind: type[nn.BatchNorm2d]) -> None:
    torch.manual_seed(0)
    plain = kind(6, momentum=0.2, eps=1e-3)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    ours = kind(6, momentum=0.2, eps=1e-3)
    ours.load_state_dict(plain.state_dict())
    synchronise(nn.Sequential(ours), torch.device("cpu"))
    assert isinstance(ours, SynchronisedBatchNorm)
    images = (5 + 3 * torch.randn(4, 6, 5, 5)).to(dtype)
    wish = torch.randn(4, 6, 5, 5).to(dtype)
    gradients = []
    for layer in (plain, ours):
        given = images.clone().requires_grad_()
        layer(given).backward(wish)
        gradients.append([given.grad, layer.weight.grad, layer.bias.grad])
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(ours(images), plain(images), **tolerance)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.eval()(images), plain.eval()(images))


def test_replaces_every_layer_and_renames_nothing() -> None:
    student = classifier.build(StudentParams(output_stride=32, backbone="resnet18"), 3, seed=0)
    names = list(student.state_dict())
    count = sum(isinstance(module, nn.BatchNorm2d) for module in student.modules())
    synchronise(student, torch.device("cpu"))
    assert sum(isinstance(module, SynchronisedBatchNorm) for module in student.modules()) == count == 20
    assert list(student.state_dict()) == names


def test_an_activation_within_the_layer_is_kept_on_gpus_too() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(BatchNormAct2d(6)).eval()
    images = torch.randn(4, 6, 5, 5)
    expected = plain(images).detach()
    ours = synchronise(plain, torch.device("cuda"))
    assert isinstance(ours[0], nn.SyncBatchNorm)
    torch.testing.assert_close(ours(images), expected)
    assert float(expected.min()) == 0
