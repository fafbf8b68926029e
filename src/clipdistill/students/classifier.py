"""The student: a plain multi-label classifier whose scores come from a class activation map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipdistill.methods.ccd import boost_positive
from clipdistill.params import StudentParams
from clipdistill.students import backbones
from clipdistill.students.network import Network
from clipdistill.students.student_yaml import Head
from clipdistill.students.weights import load_pretrained


class Student(Network):
    """A convolutional backbone, one 1 x 1 convolution to the classes, and the average over the map.

    The average of a linear map is the linear map of the average: this is the usual pooled classifier, and its class
    activation map comes with every forward pass (Zhou et al., CVPR 2016, arXiv 1512.04150).

    Attributes:
        features: [B, 3, S, S] to [B, F, h, w].
        head: [B, F, h, w] to [B, C, h, w], with a bias.
        weights: what the backbone started from.
        boost: factor of the map's positive parts (BoostLU), in training and afterwards; 1: none.
    """

    def __init__(self, features: nn.Sequential, classes: int, weights: str = "none", boost: float = 1.0) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Conv2d(backbones.width(features), classes, kernel_size=1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.get_parameter("bias"))
        self.columns = classes
        self.weights = weights
        self.boost = boost

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify a batch.

        Args:
            images: float [B, 3, S, S], normalised as `preprocessing.normalise` does.

        Returns:
            Logits float32 [B, C], and the class activation map float32 [B, C, h, w] whose average they are.
        """
        features = self.features(images)
        # In fp32 under autocast too: the head is a thousandth of the work, and bf16 has three digits.
        with torch.autocast(images.device.type, enabled=False):
            cam = self.head(features.float())
            cam = cam if self.boost == 1 else boost_positive(cam, self.boost)
            return cam.mean(dim=(2, 3)), cam

    def rates(self, head_factor: float) -> list[tuple[list[nn.Parameter], float]]:
        """All parameters: the backbone's at the peak rate, the head's at its own."""
        return [(list(self.features.parameters()), 1.0), (list(self.head.parameters()), head_factor)]


def build(params: StudentParams, classes: int, seed: int, boost: float = 1.0) -> Student:
    """Build a student.

    Args:
        params: backbone, its first weights and its output stride.
        classes: C.
        seed: of all random weights; the global random state stays as it was.
        boost: factor of the map's positive parts; 1: none.

    Returns:
        The student in training mode, on the CPU.

    Raises:
        ParamsError: a backbone or output stride that cannot be had.
        ArtifactError: weights that cannot be had or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = backbones.create(params.backbone)
        features = backbones.feature_extractor(params.backbone, network, params.output_stride)
        weights = load_pretrained(features, network, params)
        return Student(features, classes, weights, boost)


def scores(logits: Tensor, head: Head) -> Tensor:
    """Turn logits into scores in [0, 1].

    Args:
        logits: [B, C].
        head: sigmoid: each class by itself; softmax: the classes compete, and a row sums to 1.

    Returns:
        [B, C].
    """
    return torch.sigmoid(logits) if head == "sigmoid" else torch.softmax(logits, dim=1)
