"""A training with a beginning, a second view and a stopping rule."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_training import (
    CLASSES,
    COMPUTE,
    STUDENT,
    SoftLabels,
    Toy,
    before_update,
    contents,
    soft_labels,
)

from clipdistill import store
from clipdistill.errors import ArtifactError
from clipdistill.evaluation.report import Epochs
from clipdistill.methods import ccd
from clipdistill.params import RecipeParams, StudentParams
from clipdistill.students import classifier, model_folder, student_yaml
from clipdistill.training import loop
from clipdistill.training.augment import draw
from clipdistill.training.loop import Truth
from clipdistill.training.predict import predict_scores
from clipdistill.training.regime import Regime, is_chosen, train_map
from clipdistill.training.supervision import FixedLabels, Supervision
from clipdistill.training.train import Outputs, train_student
from clipdistill.training.weighted_labels import WeightedLabels

WEIGHTS = student_yaml.WEIGHTS


def learn(
    toy: Toy,
    out: Path,
    regime: Regime | None,
    *,
    labels: SoftLabels | None = None,
    supervision: Supervision | None = None,
    truth: Truth | None = None,
    student: StudentParams = STUDENT,
    **recipe: object,
) -> Path:
    """Train for two epochs of three updates at a constant rate, or as `recipe` has it; returns the student's folder."""
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 8, "precision": "fp32", "schedule": "constant"}
    train_student(
        toy[0],
        soft_labels(toy[1]) if labels is None else labels,
        CLASSES,
        student=student,
        recipe=RecipeParams(**settings | recipe),
        supervision=supervision or FixedLabels(),
        outputs=Outputs(out / "model", curves=out / "curves", epochs=out / "epochs.zarr"),
        truth=truth,
        regime=regime,
        compute=COMPUTE,
    )
    return out / "model"


def script_train_map(values: list[float], patch: pytest.MonkeyPatch) -> None:
    """Let the rule's figure take given values, epoch by epoch, whatever the student sees."""
    course: Iterator[float] = iter(values)
    patch.setattr(loop, "train_map", lambda *_: next(course))


def watch_updates(patch: pytest.MonkeyPatch, look: Callable[..., None]) -> None:
    """Call `look(trainer, arguments, result)` after each update."""
    update = loop.Trainer._step

    def watched(self: loop.Trainer, *arguments: Any) -> Any:  # noqa: ANN401
        result = update(self, *arguments)
        look(self, arguments, result)
        return result

    patch.setattr(loop.Trainer, "_step", watched)


def weights(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


class TestBeginning:
    def test_goes_on_from_the_very_weights(self, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        start = learn(toy, tmp_path / "first", None, seed=5)
        wanted, _ = model_folder.load(start)
        update, begun = loop.Trainer._step, []

        def watched(self: loop.Trainer, *arguments: Any) -> Any:  # noqa: ANN401
            begun.append({key: value.clone() for key, value in self.student.state_dict().items()})
            return update(self, *arguments)

        monkeypatch.setattr(loop.Trainer, "_step", watched)
        learn(toy, tmp_path / "second", Regime(start=start), epochs=1)
        assert begun[0].keys() == wanted.state_dict().keys()
        assert all(torch.equal(begun[0][key], value) for key, value in wanted.state_dict().items())
        # Statistics of batch normalisation too, and no seed's weights.
        assert begun[0]["features.conv1.1.num_batches_tracked"] == 6
        assert not torch.equal(begun[1]["head.weight"], begun[0]["head.weight"])

    def test_a_rate_of_nearly_nothing_keeps_the_earlier_head(self, toy: Toy, tmp_path: Path) -> None:
        start = learn(toy, tmp_path / "first", None)
        again = learn(toy, tmp_path / "second", Regime(start=start), learning_rate=1e-30, weight_decay=0.0)
        heads = [model_folder.load(folder)[0].head.weight for folder in (start, again)]
        assert torch.equal(*heads)

    def test_what_the_first_student_started_from_stays_known(self, toy: Toy, tmp_path: Path) -> None:
        student = classifier.build(STUDENT, len(CLASSES), seed=3)
        student.weights = "imagenet (some version)"
        start = tmp_path / "first"
        model_folder.save(start, student, student_yaml.Card.of(student, STUDENT, "sigmoid", CLASSES, {}))
        card = student_yaml.read(learn(toy, tmp_path / "second", Regime(start=start), epochs=1))
        assert card.backbone_weights == "imagenet (some version)"
        assert card.provenance["regime"]["start"] == student_yaml.read(start).sha256

    def test_another_beginning_is_another_run(self, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A checkpoint of a run from one student is not taken up by a run from another in the same folder."""
        starts = [learn(toy, tmp_path / str(seed), None, seed=seed, epochs=1) for seed in (1, 2)]
        whole = learn(toy, tmp_path / "whole", Regime(start=starts[1]))
        with monkeypatch.context() as patch:
            stop_before(4, patch)
            with pytest.raises(PowerCutError):
                learn(toy, tmp_path / "again", Regime(start=starts[0]))
        for file in starts[1].iterdir():
            (starts[0] / file.name).write_bytes(file.read_bytes())
        assert contents(learn(toy, tmp_path / "again", Regime(start=starts[0]))) == contents(whole)

    @pytest.mark.parametrize("other", ["network", "classes"])
    def test_another_network_is_refused(self, toy: Toy, tmp_path: Path, other: str) -> None:
        params = StudentParams(output_stride=32, backbone="resnet18", image_size=32) if other == "network" else STUDENT
        names = CLASSES if other == "network" else [*CLASSES, "grey"]
        student = classifier.build(params, len(names), seed=0)
        model_folder.save(tmp_path / "first", student, student_yaml.Card.of(student, params, "sigmoid", names, {}))
        with pytest.raises(ArtifactError, match=r"first holds another network than train\.student asks for"):
            learn(toy, tmp_path / "second", Regime(start=tmp_path / "first"))
        assert not (tmp_path / "second" / "model").exists()

    def test_a_missing_student_is_named(self, toy: Toy, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"nowhere/student\.yaml is missing"):
            learn(toy, tmp_path / "second", Regime(start=tmp_path / "nowhere"))

    def test_the_boost_is_the_students(self, toy: Toy, tmp_path: Path) -> None:
        plain = learn(toy, tmp_path / "plain", None, epochs=1)
        boosted = learn(toy, tmp_path / "boosted", Regime(boost=3.0), epochs=1)
        assert model_folder.load(boosted)[0].boost == 3.0
        assert weights(boosted) != weights(plain)


class TestStoppingRule:
    @pytest.mark.parametrize(
        ("values", "chosen"),
        [
            ([50.0, 60.0, 65.0, 75.0, 80.0], 4),
            # A later turn changes nothing, nor does a better epoch.
            ([50.0, 51.0, 55.0, 56.0, 99.0], 3),
            ([50.0, 60.0, 65.0, 67.0, 67.5], 5),
            ([math.nan] * 5, 5),
        ],
    )
    def test_the_student_of_the_chosen_epoch_is_kept(
        self, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[float], chosen: int
    ) -> None:
        truth = Truth(None, toy[0], toy[1])
        script_train_map(values, monkeypatch)
        kept = learn(toy, tmp_path / "kept", Regime(positive_at=0.6), truth=truth, epochs=5)
        short = learn(toy, tmp_path / "short", None, epochs=chosen)
        assert weights(kept) == weights(short)
        epochs = store.read_group(tmp_path / "kept" / "epochs.zarr")
        assert epochs.read("chosen").tolist() == [chosen]
        assert epochs.shape("scores") == (5, 20, 3)
        np.testing.assert_allclose(epochs.read("scores")[chosen - 1], predict_scores(kept, toy[0], COMPUTE), atol=1e-6)

    def test_the_rule_reads_the_scores_of_the_epoch_against_its_labels(
        self, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        labels, seen = soft_labels(toy[1]), np.zeros((2, 20, 3), dtype=np.float32)
        count = 0

        def look(_: loop.Trainer, arguments: tuple[Any, ...], result: tuple[torch.Tensor, torch.Tensor]) -> None:
            nonlocal count
            seen[count // 3, arguments[3].numpy()] = torch.sigmoid(result[1]).numpy()
            count += 1

        watch_updates(monkeypatch, look)
        learn(toy, tmp_path, Regime(positive_at=0.7))
        curve = (tmp_path / "curves" / "plots" / "metrics" / "train_map.tsv").read_text().split("\n")[1:3]
        found = [float(line.split("\t")[-1]) for line in curve]
        present = torch.from_numpy((labels >= 0.7).astype(np.int8))
        expected = [train_map(torch.from_numpy(scores), present.float(), 1.0) for scores in seen]
        assert found == pytest.approx(expected, abs=1e-9)
        assert found[0] != found[1]

    @pytest.mark.parametrize(("positive_at", "steps"), [(None, 0), (0.7, 6)])
    def test_steps_are_scored_only_where_a_rule_asks(
        self, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positive_at: float | None, steps: int
    ) -> None:
        calls, scores = [], classifier.scores

        def counted(*arguments: Any) -> torch.Tensor:  # noqa: ANN401
            calls.append(arguments)
            return scores(*arguments)

        monkeypatch.setattr(classifier, "scores", counted)
        learn(toy, tmp_path, Regime(positive_at=positive_at))
        # The last call is of the pass by which the thresholds are chosen.
        assert len(calls) == steps + 1

    def test_without_a_rule_the_last_student_is_written(self, toy: Toy, tmp_path: Path) -> None:
        learn(toy, tmp_path, Regime(), truth=Truth(None, toy[0], toy[1]))
        epochs = store.read_group(tmp_path / "epochs.zarr")
        assert epochs.read("chosen").tolist() == [2]
        assert epochs.shape("scores") == (0, 0, 0)
        assert "train_map" not in json.loads((tmp_path / "curves" / "metrics.json").read_text())

    def test_labels_that_are_nowhere_sure_give_the_last_student(self, toy: Toy, tmp_path: Path) -> None:
        labels = np.full((20, 3), 0.4, dtype=np.float32)
        found = learn(toy, tmp_path / "a", Regime(positive_at=1.0), labels=labels)
        assert weights(found) == weights(learn(toy, tmp_path / "b", None, labels=labels))

    def test_ground_truth_changes_no_byte_of_the_student(self, toy: Toy, tmp_path: Path) -> None:
        table, presence = toy
        noise = np.random.default_rng(7).permutation(presence.ravel()).reshape(presence.shape)
        truths = {"true": Truth(presence, table, presence), "noise": Truth(noise, table, noise), "none": None}
        for name, truth in truths.items():
            learn(toy, tmp_path / name, Regime(positive_at=0.6), truth=truth, epochs=4)
        models = [contents(tmp_path / name / "model") for name in truths]
        assert models[0] == models[1] == models[2]
        artifacts = [store.read_group(tmp_path / name / "epochs.zarr") for name in truths]
        assert len({int(group.read("chosen")[0]) for group in artifacts}) == 1
        assert [group.shape("scores") for group in artifacts] == [(4, 20, 3), (4, 20, 3), (0, 0, 0)]
        np.testing.assert_array_equal(artifacts[0].read("scores"), artifacts[1].read("scores"))

    @given(st.lists(st.floats(0, 100) | st.just(math.nan), min_size=1, max_size=12))
    def test_choosing_on_the_way_is_choosing_at_the_end(self, values: list[float]) -> None:
        taken = [epoch for epoch in range(len(values)) if is_chosen(values[: epoch + 1])]
        assert taken[-1] == ccd.curvature_epoch(values)

    @pytest.mark.parametrize(("images", "present"), [(18, 12), (46, 43), (53, 29), (67, 26)])
    def test_a_perfect_ranking_is_worth_100_to_the_rule(self, images: int, present: int) -> None:
        labels = torch.zeros(images, 1)
        labels[:present] = 1
        found = train_map(torch.linspace(0.9, 0.1, images)[:, None], labels, 1.0)
        assert found == pytest.approx(100, abs=1e-3)
        assert is_chosen([50.0, found])

    def test_no_sure_label_has_no_figure(self) -> None:
        scores = torch.tensor([[0.2], [0.9]])
        assert math.isnan(train_map(scores, torch.tensor([[0.5], [0.6]]), 1.0))
        assert train_map(scores, torch.tensor([[0.5], [0.6]]), 0.6) == pytest.approx(100)
        assert train_map(scores, torch.tensor([[0.6], [0.5]]), 0.6) == pytest.approx(50)


class PowerCutError(Exception):
    """What stops a run in these tests."""


def stop_before(update: int, patch: pytest.MonkeyPatch) -> None:
    def stop(number: int) -> None:
        if number == update:
            raise PowerCutError

    before_update(stop, patch)


@pytest.mark.parametrize("update", [8, 10, *(pytest.param(update, marks=pytest.mark.slow) for update in (4, 14))])
def test_a_run_taken_up_again_ends_in_the_same_bytes(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    """The third of five epochs is chosen: updates 7 to 9. The cut comes before, within and after them."""
    start = learn(toy, tmp_path / "first", None, seed=5, epochs=1)
    regime = Regime(start=start, boost=3.0, agreement=0.5, jitter=0.5, positive_at=0.6)
    truth, values = Truth(toy[1], toy[0], toy[1]), [50.0, 60.0, 75.0, 76.0, 90.0]
    settings: dict[str, Any] = {"truth": truth, "epochs": 5, "schedule": "one_cycle"}
    with monkeypatch.context() as patch:
        script_train_map(values, patch)
        learn(toy, tmp_path / "whole", regime, **settings)
    script_train_map(values, monkeypatch)
    with monkeypatch.context() as patch:
        stop_before(update, patch)
        with pytest.raises(PowerCutError):
            learn(toy, tmp_path / "again", regime, **settings)
    torch.rand(3)
    learn(toy, tmp_path / "again", regime, **settings)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    assert store.read_group(tmp_path / "again" / "epochs.zarr").read("chosen").tolist() == [3]


class TestSecondView:
    def test_agreement_changes_the_student_and_none_changes_nothing(self, toy: Toy, tmp_path: Path) -> None:
        plain = learn(toy, tmp_path / "plain", None)
        assert contents(learn(toy, tmp_path / "none", Regime(agreement=0.0))) == contents(plain)
        assert weights(learn(toy, tmp_path / "jitter", Regime(agreement=0.0, jitter=0.5))) == weights(plain)
        agreeing = [learn(toy, tmp_path / f"{j}", Regime(agreement=1.0, jitter=j), epochs=1) for j in (0.0, 0.5)]
        assert len({weights(plain), *map(weights, agreeing)}) == 3

    def test_its_random_numbers_are_its_own(self, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
        watch_updates(monkeypatch, lambda _, arguments, __: found.append((arguments[3], arguments[1])))
        learn(toy, tmp_path, Regime(agreement=1.0, jitter=0.5), seed=4)
        assert len(found) == 6
        for update, (rows, draws) in enumerate(found):
            epoch = 1 + update // 3
            first, second = draws
            assert torch.equal(first, draw(20, 4, epoch)[rows])
            assert torch.equal(second, draw(20, 4, epoch, view=1)[rows])
            assert not (first == second).any()

    def test_draws_of_views_epochs_and_seeds_differ(self) -> None:
        drawn = [draw(6, seed, epoch, view) for seed in (0, 1, 2) for epoch in (1, 2) for view in (0, 1)]
        for index, one in enumerate(drawn):
            assert all(not torch.equal(one, other) for other in drawn[index + 1 :])

    def test_the_loss_is_that_of_the_labels_and_the_weighted_agreement(
        self, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without any augmentation both views are one image: the agreement is the entropy of its own prediction."""
        labels, found = torch.from_numpy(soft_labels(toy[1])), []

        def look(_: loop.Trainer, arguments: tuple[Any, ...], result: tuple[torch.Tensor, torch.Tensor]) -> None:
            found.append((arguments[3], *result))

        watch_updates(monkeypatch, look)
        for agreement in (1.0, 3.0):
            learn(toy, tmp_path / f"{agreement}", Regime(agreement=agreement), flip=0.0, epochs=1)
        for agreement, (rows, loss, logits) in zip((1.0, 3.0), (found[0], found[3]), strict=True):
            assert logits.shape == (8, 3)
            p, y = torch.sigmoid(logits), labels[rows]
            entropy = torch.special.entr(p) + torch.special.entr(1 - p)
            divergence = y * (y / p).log() + (1 - y) * ((1 - y) / (1 - p)).log()
            torch.testing.assert_close(loss, (divergence + agreement * entropy).mean())


class TestWeightedLabels:
    def test_an_image_without_weight_teaches_nothing(self, toy: Toy, tmp_path: Path) -> None:
        labels, weight = soft_labels(toy[1]), torch.ones(20)
        weight[3] = 0
        other = labels.copy()
        other[3] = 1 - other[3]
        unweighted, weighted = (
            [learn(toy, tmp_path / f"{name}-{i}", None, labels=own, supervision=WeightedLabels(w)) for i, own in cases]
            for name, w in (("all", torch.ones(20)), ("some", weight))
            for cases in [list(enumerate((labels, other)))]
        )
        assert weights(weighted[0]) == weights(weighted[1])
        assert weights(unweighted[0]) != weights(unweighted[1])

    def test_the_weights_are_those_of_the_rows(self) -> None:
        weight = torch.tensor([0.0, 0.1, 1.0, 0.5])
        labels, logits = torch.tensor([[1.0, 0.2], [0.0, 0.7]]), torch.tensor([[0.3, -0.4], [2.0, 0.1]])
        found = WeightedLabels(weight).loss(labels, logits, torch.tensor([3, 1]))
        p = torch.sigmoid(logits)
        entropy = -(labels * p.log() + (1 - labels) * (1 - p).log())
        torch.testing.assert_close(found, (0.5 * entropy[0] + 0.1 * entropy[1]).sum() / 4)

    def test_labels_are_fixed_and_a_loss_leaves_the_identity(self) -> None:
        supervision = WeightedLabels(torch.tensor([1.0, 0.5]))
        before = supervision.identity
        supervision.loss(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([1]))
        assert supervision.identity == before
        assert not supervision.due(1)

    def test_other_weights_are_another_run(self) -> None:
        identities = [json.dumps(WeightedLabels(w).identity) for w in (torch.ones(2), torch.tensor([1.0, 0.5]))]
        assert identities[0] != identities[1]


class TestFigures:
    """mAP of each epoch's scores, beside that of the chosen one."""

    LABELS = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], dtype=np.int8)
    GOOD = np.array([[0.9, 0.1], [0.2, 0.9], [0.8, 0.2], [0.1, 0.3]], dtype=np.float32)
    # First class: positives at ranks 1 and 3, AP (1 + 2/3) / 2; second class: rank 3, AP 1/3. Mean 7/12.
    POOR = np.array([[0.9, 0.8], [0.7, 0.4], [0.6, 0.5], [0.1, 0.3]], dtype=np.float32)

    def test_last_and_best(self) -> None:
        figures = Epochs(np.stack([self.POOR, self.GOOD, self.POOR]), chosen=1).figures(self.LABELS, "skip")
        assert figures == {
            "epoch": 1,
            "last_mAP": 58.33,
            "last_epoch": 3,
            "oracle_mAP": 100.0,
            "oracle_epoch": 2,
            "oracle_uses_labels": True,
        }

    def test_of_equal_epochs_the_first_is_the_best(self) -> None:
        assert Epochs(np.stack([self.GOOD, self.GOOD]), 2).figures(self.LABELS, "skip")["oracle_epoch"] == 1

    def test_a_class_without_positives_counts_as_it_does_elsewhere(self) -> None:
        labels = self.LABELS.copy()
        labels[:, 1] = 0
        epochs = Epochs(self.GOOD[None], 1)
        assert [epochs.figures(labels, mode)["last_mAP"] for mode in ("skip", "zero")] == [100.0, 50.0]

    def test_unknown_labels_give_no_figures(self) -> None:
        labels = np.full((4, 2), -1, dtype=np.int8)
        figures = Epochs(np.stack([self.POOR, self.GOOD]), 2).figures(labels, "skip")
        assert figures["last_mAP"] is figures["oracle_mAP"] is None
        json.dumps(figures, allow_nan=False)

    def test_without_scores_the_chosen_epoch_alone(self) -> None:
        assert Epochs(np.empty((0, 0, 0), dtype=np.float32), 3).figures(self.LABELS, "skip") == {"epoch": 3}
