from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from clipdistill.errors import ArtifactError
from clipdistill.evaluation import report
from clipdistill.evaluation.metrics import figures_at
from clipdistill.evaluation.thresholds import DEFAULT, best_f1, two_groups, without_truth
from clipdistill.params import EvaluateParams


def expected_f1(scores: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    """One class by its definition, image by image."""
    hits = predicted = positives = 0.0
    for score, label in zip(scores.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            positives += label
            predicted += score >= threshold
            hits += label * (score >= threshold)
    return 2 * hits / max(predicted + positives, 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans())
def test_no_threshold_has_a_higher_expected_f1(seed: int, images: int, soft: bool) -> None:
    rng = np.random.default_rng(seed)
    # Few different scores, so that many are equal.
    scores = (rng.integers(0, 6, (images, 3)) / 8).astype(np.float32)
    labels = rng.random((images, 3)) if soft else rng.integers(-1, 2, (images, 3)).astype(float)
    for column, threshold in enumerate(best_f1(scores, labels)):
        own, truth = scores[:, column], labels[:, column]
        cuts = {cut: expected_f1(own, truth, cut) for cut in [*np.unique(own[own > 0]), 0.9]}
        everywhere = (own[truth >= 0] >= threshold).all()
        if threshold != DEFAULT:
            assert expected_f1(own, truth, threshold) == pytest.approx(max(cuts.values()))
            assert not everywhere or 2 * truth[truth >= 0].sum() >= (truth >= 0).sum()


def test_labels_of_0_and_1_give_the_best_f1_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 4)) < 0.3).astype(np.int8)
    scores = np.clip(0.3 * labels + rng.normal(0.3, 0.15, labels.shape), 0, 1).astype(np.float32)
    for column, threshold in enumerate(best_f1(scores, labels)):
        reached = f1_score(labels[:, column], scores[:, column] >= threshold)
        best = max(f1_score(labels[:, column], scores[:, column] >= cut) for cut in scores[:, column])
        assert reached == pytest.approx(best)


def test_calibrated_scores_are_cut_at_half_the_f1_that_they_reach() -> None:
    scores = np.random.default_rng(1).beta(0.5, 2.0, (100_000, 1)).astype(np.float32)
    threshold = best_f1(scores, scores)[0]
    assert threshold == pytest.approx(expected_f1(scores[:, 0], scores[:, 0], threshold) / 2, abs=0.005)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([0.9, 0.8, 0.1], [0, 0, 0]),  # no positive
        ([0.9, 0.8, 0.1], [-1, -1, -1]),  # nothing known
        ([0.0, 0.0, 0.0], [1, 0, 1]),  # no score
        ([0.4, 0.3, 0.2, 0.1], [0, 0, 0, 1]),  # the wrong way round: all would be predicted
    ],
)
def test_a_class_about_which_nothing_is_known_keeps_the_default(scores: list[float], labels: list[int]) -> None:
    assert best_f1(np.array(scores)[:, None], np.array(labels)[:, None]).tolist() == [DEFAULT]


def test_a_class_that_most_images_show_may_be_predicted_everywhere() -> None:
    scores = np.array([[0.9], [0.8], [0.7]], np.float32)
    assert best_f1(scores, np.array([[1], [0], [1]]))[0] == pytest.approx(0.35)


def test_neighbours_of_float32_are_told_apart() -> None:
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    scores, labels = np.array([[high], [low], [low]]), np.array([[1], [0], [0]])
    threshold = best_f1(scores, labels)
    assert (scores >= threshold).tolist() == [[True], [False], [False]]
    assert figures_at(scores, labels, threshold.tolist())["OF1"] == 100


def test_no_image_gives_defaults() -> None:
    assert best_f1(np.empty((0, 2)), np.empty((0, 2))).tolist() == [DEFAULT, DEFAULT]


def test_matrices_must_match() -> None:
    with pytest.raises(ValueError, match=r"\[N, C\] alike"):
        best_f1(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="a threshold a class, 2"):
        figures_at(np.zeros((2, 2)), np.zeros((2, 2), np.int8), [0.5])


@pytest.mark.parametrize(("images", "classes"), [(3, 3), (4, 2), (2, 2)])
def test_scores_of_another_shape_have_no_report(tmp_path: Path, images: int, classes: int) -> None:
    scores, labels = np.zeros((images, classes), np.float32), np.zeros((3, 2), np.int8)
    with pytest.raises(ArtifactError, match=rf"a\.json: scores \[{images}, {classes}\] and ground truth \[3, 2\]"):
        report.write(scores, labels, ["a", "b"], EvaluateParams(), tmp_path / "a.json", tmp_path / "a.csv")
    with pytest.raises(ArtifactError, match="not to 1 classes"):
        report.write(scores, scores, ["a"], EvaluateParams(), tmp_path / "a.json", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_the_report_has_own_and_oracle_figures() -> None:
    scores = np.array([[0.4, 0.2], [0.3, 0.1], [0.1, 0.3]], np.float32)
    labels = np.array([[1, 1], [1, 0], [0, 0]], np.int8)
    assert set(report.threshold_figures(scores, labels, None)) == {"oracle"}
    figures = report.threshold_figures(scores, labels, [0.35, 0.5])
    assert figures["own"] == {"CF1": pytest.approx(33.33), "OF1": 50.0}
    assert figures["oracle"]["OF1"] == pytest.approx(85.71)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_no_cut_parts_the_scores_better_than_the_one_chosen(seed: int, images: int) -> None:
    scores = (np.random.default_rng(seed).integers(0, 6, (images, 3)) / 8).astype(np.float32)

    def between(own: np.ndarray, cut: float) -> float:
        above = own >= cut
        return float(above.sum() * (~above).sum() * (own[above].mean() - own[~above].mean()) ** 2)

    for own, threshold in zip(scores.T.astype(float), two_groups(scores), strict=True):
        cuts = np.unique(own)[1:]
        if len(cuts):
            assert between(own, threshold) == pytest.approx(max(between(own, cut) for cut in cuts))
        else:
            assert threshold == 0


def test_labels_that_promise_too_much_do_not_let_every_score_in() -> None:
    scores = np.r_[np.full(10, 0.9), np.linspace(0.1, 0.3, 90), np.full(40, 0.01)][:, None]
    # Soft labels: 0.3 for what is not there, so that their sum promises 37 positives where there are 10.
    labels = np.r_[np.full(10, 1.0), np.full(90, 0.3), np.zeros(40)][:, None]
    assert best_f1(scores, labels)[0] < 0.3
    assert without_truth(scores, labels)[0] == pytest.approx(0.6)


def test_labels_that_ask_for_less_than_two_groups_are_heard() -> None:
    scores = np.array([[0.9], [0.6], [0.5], [0.1], [0.1]])
    labels = np.array([[1.0], [0.0], [0.0], [0.0], [0.0]])
    assert two_groups(scores)[0] == pytest.approx(0.3)
    assert without_truth(scores, labels)[0] == pytest.approx(0.75)
    assert without_truth(np.full((4, 1), 0.2), np.zeros((4, 1))).tolist() == [DEFAULT]
    assert two_groups(np.empty((1, 2))).tolist() == [0, 0]
