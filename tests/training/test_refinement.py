from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_training import COMPUTE, Toy, contents, soft_labels, train

from clipdistill import store
from clipdistill.methods import cdul
from clipdistill.params import CdulTrainParams
from clipdistill.students import model_folder, student_yaml
from clipdistill.training.data import ImageSource
from clipdistill.training.gradient_alignment import GradientAlignment
from clipdistill.training.predict import predict, predict_scores
from clipdistill.training.supervision import FixedLabels


class Recording(GradientAlignment):
    """Gradient alignment that remembers what it was given and what it gave."""

    def __init__(self, params: CdulTrainParams) -> None:
        super().__init__(params)
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def refine(self, labels: Tensor, scores: Tensor) -> Tensor:
        refined = super().refine(labels, scores)
        self.calls.append((labels.clone(), scores.clone(), refined.clone()))
        return refined


@pytest.mark.parametrize(
    ("every", "warmup", "epochs"), [(1, 0, [1, 2, 3, 4, 5]), (2, 0, [2, 4]), (2, 1, [3, 5]), (1, 3, [4, 5]), (9, 0, [])]
)
def test_the_schedule(every: int, warmup: int, epochs: list[int]) -> None:
    method = GradientAlignment(CdulTrainParams(update_every=every, warmup=warmup))
    assert [epoch for epoch in range(1, 6) if method.due(epoch)] == epochs


def test_labels_are_refined_on_schedule_from_clean_scores(toy: Toy, tmp_path: Path) -> None:
    method = Recording(CdulTrainParams(warmup=1, update_every=2, sigma=0.5, step=0.7))
    outputs = train(toy, tmp_path, method, epochs=5)
    group = store.read_group(tmp_path / "labels")
    states = torch.from_numpy(group.read("labels"))
    assert group.read("epoch").tolist() == [0, 3, 5]
    assert torch.equal(states[0], torch.from_numpy(soft_labels(toy[1])))
    assert len(method.calls) == 2
    for update, (before, scores, after) in enumerate(method.calls):
        assert torch.equal(before, states[update])
        assert torch.equal(after, states[update + 1])
        assert torch.equal(after, cdul.gradient_alignment(before, scores, 0.5, 0.7))
        assert not torch.equal(before, after)
    student, _ = model_folder.load(outputs.model)
    clean = predict(student, ImageSource(toy[0], 32, "memory", 1), "sigmoid", torch.float32)
    torch.testing.assert_close(method.calls[-1][1], clean)


def test_the_student_learns_from_the_refined_labels(toy: Toy, tmp_path: Path) -> None:
    for step in (0.0, 1.0):
        train(toy, tmp_path / str(step), GradientAlignment(CdulTrainParams(warmup=0, step=step)), epochs=2)
    weights = [contents(tmp_path / step / "model")[student_yaml.WEIGHTS] for step in ("0.0", "1.0")]
    assert weights[0] != weights[1]


def test_a_step_of_zero_leaves_the_labels(toy: Toy, tmp_path: Path) -> None:
    train(toy, tmp_path, GradientAlignment(CdulTrainParams(warmup=0, step=0.0)), epochs=2)
    states = store.read_group(tmp_path / "labels").read("labels")
    np.testing.assert_allclose(states, np.broadcast_to(states[0], (3, 20, 3)), atol=2e-6)


def test_fixed_labels_have_one_state(toy: Toy, tmp_path: Path) -> None:
    train(toy, tmp_path, FixedLabels(), epochs=2)
    group = store.read_group(tmp_path / "labels")
    assert group.read("epoch").tolist() == [0]
    assert np.array_equal(group.read("labels")[0], soft_labels(toy[1]))


def test_the_reproduction_variant_refines_each_batch_from_the_scores_of_its_step(toy: Toy, tmp_path: Path) -> None:
    method = Recording(CdulTrainParams(variant="reproduction", warmup=0))
    outputs = train(toy, tmp_path, method, epochs=1)
    assert student_yaml.read(outputs.model).head == "softmax"
    assert len(method.calls) > 1
    assert sum(len(before) for before, _, _ in method.calls) == 20
    before, scores, after = method.calls[0]
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(len(before)))
    assert torch.equal(after, cdul.gradient_alignment(before, scores, 1.0, 1 / 8, "softmax"))
    first, last = store.read_group(tmp_path / "labels").read("labels")
    moved = sorted(row.tobytes() for _, _, batch in method.calls for row in batch.numpy())
    assert moved == sorted(row.tobytes() for row in last)
    assert (np.abs(last - first).max(axis=1) > 0).all()
    np.testing.assert_allclose(predict_scores(outputs.model, toy[0], COMPUTE).sum(axis=1), 1, rtol=1e-5)


def test_the_reproduction_variant_refines_only_when_it_is_due(toy: Toy, tmp_path: Path) -> None:
    method = Recording(CdulTrainParams(variant="reproduction", warmup=1))
    train(toy, tmp_path, method, epochs=2)
    assert sum(len(before) for before, _, _ in method.calls) == 20
    assert store.read_group(tmp_path / "labels").read("epoch").tolist() == [0, 2]


def test_the_directions_of_the_two_variants() -> None:
    labels, logits = torch.tensor([[0.9, 0.2]]), torch.tensor([[0.3, -0.4]])
    default, study = (GradientAlignment(CdulTrainParams(variant=name)) for name in ("default", "reproduction"))
    p, y, rows = torch.sigmoid(logits), labels, torch.tensor([0])
    forward = y * (y / p).log() + (1 - y) * ((1 - y) / (1 - p)).log()
    torch.testing.assert_close(default.loss(labels, logits, rows), forward.mean())
    p, q = torch.softmax(logits, dim=1), labels / labels.sum()
    torch.testing.assert_close(study.loss(labels, logits, rows), (p * (p / q).log()).sum())


def test_unknown_labels_teach_nothing() -> None:
    logits = torch.tensor([[0.3, -0.4]], requires_grad=True)
    FixedLabels().loss(torch.tensor([[1.0, -1.0]]), logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] < 0
    assert logits.grad[0, 1] == 0
