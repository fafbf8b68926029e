"""Metrics against scikit-learn and slow counts."""

import doctest
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from clipdistill.evaluation import metrics
from clipdistill.evaluation.metrics import classification_report, evaluate, mean_average_precision

quick = settings(deadline=None, max_examples=60)
# Few different values, so that ties are common; far outside [0, 1], so that a sigmoid would saturate.
TIED = st.sampled_from([-1e30, -100.0, -0.5, -0.0, 0.0, 1e-30, 0.25, 0.5, 1.0, 40.0, 41.0, 1e30])


@st.composite
def problems(draw: st.DrawFn, elements: st.SearchStrategy[float], known: bool = False, classes: int = 1) -> tuple:
    """Scores and labels of one random shape [N, C], of at least `classes` classes."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(classes, 5)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    labels = st.sampled_from([0, 1] if known else [0, 1, -1])
    scores = draw(arrays.arrays(dtype, shape, elements=elements))
    return scores, draw(arrays.arrays(np.int8, shape, elements=labels))


def reference_ap(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of each class in percent, by scikit-learn; NaN without positives."""
    result = np.full(scores.shape[1], np.nan)
    for column, (values, truth) in enumerate(zip(scores.T, labels.T, strict=True)):
        if (truth == 1).any():
            result[column] = 100 * average_precision_score(truth[truth >= 0], values[truth >= 0])
    return result


def test_docstring_examples() -> None:
    result = doctest.testmod(metrics)
    assert result.attempted > 0
    assert result.failed == 0


# mean_average_precision


@quick
@given(problems(st.one_of(TIED, st.floats(-5, 5, width=16))))
def test_average_precision_equals_scikit_learn(problem: tuple) -> None:
    mean, per_class = mean_average_precision(*problem)
    expected = reference_ap(*problem)
    np.testing.assert_allclose(per_class, expected, atol=1e-4)
    if np.isnan(expected).all():
        assert math.isnan(mean)
    else:
        assert mean == pytest.approx(np.nanmean(expected), abs=1e-4)


def test_average_precision_of_a_large_tied_problem_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 1, -1], np.int8), size=(5000, 6), p=[0.8, 0.1, 0.1])
    scores = (rng.normal(size=labels.shape) + labels).astype(np.float16).astype(np.float32)
    _, per_class = mean_average_precision(scores, labels)
    np.testing.assert_allclose(per_class, reference_ap(scores, labels), atol=1e-4)


def test_logits_that_a_sigmoid_would_tie_keep_their_order() -> None:
    scores = np.array([[200.0], [199.0], [198.0], [-1.0]], np.float32)
    labels = np.array([[0], [1], [0], [0]], np.int8)
    assert mean_average_precision(scores, labels)[0] == pytest.approx(50.0)


def test_scores_as_near_as_floats_can_be_keep_their_order() -> None:
    scores = np.array([[1.0], [np.nextafter(np.float32(1), np.float32(0))], [1e-45]], np.float32)
    assert mean_average_precision(scores, np.array([[0], [1], [0]], np.int8))[0] == pytest.approx(50.0)
    assert mean_average_precision(scores, np.array([[0], [0], [1]], np.int8))[0] == pytest.approx(100 / 3, abs=1e-4)


@quick
@given(problems(TIED), st.randoms(use_true_random=False))
def test_only_the_order_of_scores_within_a_class_counts(problem: tuple, random) -> None:  # noqa: ANN001
    scores, labels = problem
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in scores.T], axis=1)
    rows = list(range(len(scores)))
    random.shuffle(rows)
    result = mean_average_precision(ranks[rows], labels[rows])
    np.testing.assert_allclose(result[1], mean_average_precision(scores, labels)[1], atol=1e-9)


@quick
@given(problems(TIED), st.integers(0, 2**31))
def test_unknown_entries_count_nowhere(problem: tuple, seed: int) -> None:
    scores, labels = problem
    noise = np.random.default_rng(seed).normal(size=scores.shape).astype(scores.dtype)
    changed = np.where(labels == -1, noise, scores)
    np.testing.assert_array_equal(mean_average_precision(changed, labels)[1], mean_average_precision(scores, labels)[1])
    threshold_only = [
        {key: value for key, value in classification_report(values, labels, 0.3).items() if key != "top3"}
        for values in (changed, scores)
    ]
    assert threshold_only[0] == threshold_only[1]


def test_a_class_without_positives_is_left_out_or_counted_zero() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.1, 0.2, 0.5]])
    labels = np.array([[1, 0, -1], [0, 0, -1]], np.int8)
    skipped, per_class = mean_average_precision(scores, labels, "skip")
    assert skipped == pytest.approx(100.0)
    assert mean_average_precision(scores, labels, "zero")[0] == pytest.approx(100 / 3)
    np.testing.assert_array_equal(np.isnan(per_class), [False, True, True])


def test_known_labels_without_any_positive() -> None:
    scores, labels = np.array([[0.9], [0.1]]), np.zeros((2, 1), np.int8)
    assert math.isnan(mean_average_precision(scores, labels, "skip")[0])
    assert mean_average_precision(scores, labels, "zero")[0] == 0.0
    assert math.isnan(mean_average_precision(scores, labels - 1, "zero")[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    scores = np.array([[0.1, 0.2], [0.3, value]], np.float32)
    labels = np.array([[1, 0], [0, 1]], np.int8)
    for metric in (mean_average_precision, classification_report):
        with pytest.raises(ValueError, match=r"scores must be finite, but row 1, class 1 holds"):
            metric(scores, labels)


def test_unlawful_labels_shapes_and_rules_are_refused() -> None:
    scores = np.zeros((2, 2))
    with pytest.raises(ValueError, match="labels must be 1, 0 or -1, but row 0, class 1 holds 2"):
        mean_average_precision(scores, np.array([[0, 2], [0, 0]]))
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 3\)"):
        mean_average_precision(scores, np.zeros((2, 3), np.int8))
    with pytest.raises(ValueError, match="matrices"):
        mean_average_precision(np.zeros(2), np.zeros(2, np.int8))
    with pytest.raises(ValueError, match="at least one entry"):
        mean_average_precision(np.zeros((0, 2)), np.zeros((0, 2), np.int8))
    with pytest.raises(ValueError, match="empty_class must be skip or zero, but is 'nan'"):
        mean_average_precision(scores, np.zeros((2, 2), np.int8), "nan")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
def test_takes_tensors_and_arrays_of_any_layout_and_leaves_them_alone() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random((20, 3), dtype=np.float32), (rng.random((20, 3)) < 0.4).astype(np.int8)
    expected = mean_average_precision(scores, labels)[0]
    sealed = scores.copy()
    sealed.flags.writeable = False
    variants = [
        (torch.from_numpy(scores).requires_grad_(), torch.from_numpy(labels)),
        (sealed, labels),
        (np.asfortranarray(scores), labels.astype(np.int64)),
        (scores[::-1], labels[::-1]),
        (torch.from_numpy(scores).double(), labels),
    ]
    assert [mean_average_precision(*variant)[0] for variant in variants] == pytest.approx([expected] * len(variants))
    np.testing.assert_array_equal(scores, sealed)


# classification_report


def slow_report(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """CP to OF1 of fully known labels, by scikit-learn."""
    precision, recall = (
        100 * metric(labels, predicted, average="macro", zero_division=0) for metric in (precision_score, recall_score)
    )
    return {
        "CP": precision,
        "CR": recall,
        "CF1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "OP": 100 * precision_score(labels, predicted, average="micro", zero_division=0),
        "OR": 100 * recall_score(labels, predicted, average="micro", zero_division=0),
        "OF1": 100 * f1_score(labels, predicted, average="micro", zero_division=0),
    }


@quick
@given(problems(st.sampled_from([-2.0, 0.0, 0.25, 0.5, 0.75, 3.0]), known=True, classes=2), st.integers(1, 6))
def test_report_equals_scikit_learn(problem: tuple, top_k: int) -> None:
    scores, labels = problem
    report = classification_report(scores, labels, 0.5, top_k)
    top = report.pop(f"top{top_k}")
    assert report == pytest.approx(slow_report(scores >= 0.5, labels), abs=1e-9)
    in_top = np.zeros(scores.shape, bool)
    for row, values in enumerate(scores):
        in_top[row, sorted(range(len(values)), key=lambda column: (-values[column], column))[:top_k]] = True
    assert top == pytest.approx(slow_report(in_top, labels), abs=1e-9)


def test_report_of_a_single_class() -> None:
    report = classification_report(np.array([[0.9], [0.8], [0.1]]), np.array([[1], [0], [1]], np.int8), top_k=3)
    assert report["CP"] == report["CR"] == report["OF1"] == pytest.approx(50)
    assert report["top3"]["OR"] == pytest.approx(100)


def test_unknown_entries_are_left_out_of_every_count() -> None:
    scores = np.array([[0.9, 0.8, 0.1], [0.7, 0.2, 0.6]])
    labels = np.array([[1, -1, 0], [-1, 1, 0]], np.int8)
    report = classification_report(scores, labels, 0.5, top_k=2)
    # Known and predicted: (0, 0) rightly, (1, 2) wrongly. Known and present, but missed: (1, 1).
    assert report["CP"] == pytest.approx(100 / 3)
    assert report["CR"] == pytest.approx(100 / 3)
    assert report["OP"] == report["OR"] == report["OF1"] == pytest.approx(50)
    assert report["top2"] == {key: value for key, value in report.items() if key != "top2"}


def test_f1_is_taken_of_the_means() -> None:
    scores = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    labels = np.array([[1, 1], [0, 1], [0, 1], [0, 1]], np.int8)
    report = classification_report(scores, labels, 0.5, 1)
    assert report["CP"] == report["CR"] == report["CF1"] == pytest.approx(62.5)  # the mean of the F1s would be 40


def test_a_score_at_the_threshold_counts_also_in_float32() -> None:
    scores, labels = np.array([[0.7, 0.0]], np.float32), np.array([[1, 0]], np.int8)
    assert classification_report(scores, labels, 0.7)["OR"] == 100.0
    assert classification_report(scores, labels, 0.70001)["OR"] == 0.0


def test_equal_scores_predict_exactly_k_classes_in_class_order() -> None:
    labels = np.array([[0, 0, 0, 1, 1]], np.int8)
    assert classification_report(np.zeros((1, 5)), labels, 0.5, 3)["top3"]["OP"] == 0.0
    assert classification_report(np.zeros((1, 5)), labels, 0.5, 4)["top4"]["OP"] == pytest.approx(25)
    assert classification_report(np.zeros((1, 5)), labels, 0.5, 9)["top9"]["OR"] == pytest.approx(100)
    many = (np.arange(300) < 7).astype(np.int8)[None]  # an unstable sort keeps the order of a few, not of hundreds
    assert classification_report(np.zeros((1, 300)), many, 0.5, 7)["top7"]["OP"] == pytest.approx(100)


def test_report_refuses_unlawful_arguments() -> None:
    scores, labels = np.zeros((1, 2)), np.zeros((1, 2), np.int8)
    with pytest.raises(ValueError, match="top_k must be at least 1, but is 0"):
        classification_report(scores, labels, 0.5, 0)
    with pytest.raises(ValueError, match="threshold must be finite"):
        classification_report(scores, labels, math.nan)


# evaluate


def test_evaluation_gathers_all_figures() -> None:
    scores = np.array([[0.9, 0.2, 0.4], [0.1, 0.8, 0.3], [0.5, 0.5, 0.5]])
    labels = np.array([[1, 0, 0], [0, 1, 0], [-1, -1, -1]], np.int8)
    result = evaluate(scores, labels, ["cat", "dog", "sheep"], threshold=0.3, top_k=1)
    assert result.mean_average_precision == pytest.approx(100)
    assert result.average_precision["dog"] == pytest.approx(100)
    assert math.isnan(result.average_precision["sheep"])
    assert (result.images, result.labelled, result.classes, result.empty_classes) == (3, 2, 2, ("sheep",))
    assert result.to_json() == {
        "val": {
            "mAP": 100.0,
            "CP": 66.67,
            "CR": 66.67,
            "CF1": 66.67,
            "OP": 50.0,
            "OR": 100.0,
            "OF1": 66.67,
            "top1": {"CP": 66.67, "CR": 66.67, "CF1": 66.67, "OP": 100.0, "OR": 100.0, "OF1": 100.0},
            "empty_classes": 1,
        }
    }
    assert evaluate(scores, labels, ["a", "b", "c"], empty_class="zero").to_json("test")["test"]["mAP"] == 66.67


def test_without_known_labels_there_are_no_figures() -> None:
    result = evaluate(np.zeros((4, 2)), np.full((4, 2), -1, np.int8), ["a", "b"], empty_class="zero")
    assert result.to_json() == {"val": {"images": 4, "labelled": 0}}


def test_an_undefined_figure_is_null_never_nan() -> None:
    result = evaluate(np.zeros((4, 2)), np.zeros((4, 2), np.int8), ["a", "b"]).to_json()
    assert result["val"]["mAP"] is None
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "b", "c"], ["a", "b", "b"]])
def test_class_names_must_name_every_column_once(names: list[str]) -> None:
    with pytest.raises(ValueError, match="class_names must hold 2 different names"):
        evaluate(np.zeros((1, 2)), np.zeros((1, 2), np.int8), names)


def test_chance_over_many_images_is_the_share_of_positives() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((40_000, 80)) < 0.04).astype(np.int8)
    scores = rng.random(labels.shape, dtype=np.float32)
    result = evaluate(scores, labels, [str(column) for column in range(80)])
    assert result.mean_average_precision == pytest.approx(4, abs=0.3)
