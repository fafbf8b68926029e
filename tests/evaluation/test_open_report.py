"""Metrics of an open vocabulary against counts by hand, torchmetrics, and what the released code computes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

from clipdistill.errors import ArtifactError
from clipdistill.evaluation.open_report import compare, open_figures

quick = settings(deadline=None, max_examples=40)

SCORES = np.array(
    [
        [0.9, 0.1, 0.8, 0.3, 0.2],
        [0.7, 0.6, 0.1, 0.5, 0.4],
        [0.2, 0.9, 0.3, 0.8, 0.1],
        [0.4, 0.3, 0.2, 0.1, 0.9],
    ],
    np.float32,
)
LABELS = np.array(
    [
        [1, 0, 0, 1, 0],
        [0, 1, -1, -1, 0],
        [-1, 1, 1, 0, 0],
        [1, 0, 0, 0, -1],
    ],
    np.int8,
)
# By label: 1 0 1 -> (1 + 2/3) / 2; 1 1 0 0 -> 1; 0 1 0 -> 1/2; 0 1 0 -> 1/2; nothing is present in the last.
PRECISIONS = [250 / 3, 100.0, 50.0, 50.0]


def drawn(images: int, labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random scores without ties, and labels of which most are absent."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(images * labels).reshape(images, labels).astype(np.float32) / (images * labels)
    return scores, rng.choice(np.array([-1, 0, 1], np.int8), (images, labels), p=[0.1, 0.7, 0.2])


# open_figures


def test_average_precision_by_hand_and_a_label_without_positives_is_reported() -> None:
    skipped, counted = (open_figures(SCORES, LABELS, (), rule) for rule in ("skip", "zero"))
    assert skipped == {"mAP": round(sum(PRECISIONS) / 4, 2), "empty_labels": 1}
    assert counted == {"mAP": round(sum(PRECISIONS) / 5, 2), "empty_labels": 1}
    assert open_figures(SCORES[:, :4], LABELS[:, :4], (), "zero") == {"mAP": 70.83}


def test_figures_at_k_by_hand() -> None:
    figures = open_figures(SCORES, LABELS, (1, 2, 5), "zero")
    # Predicted, k = 1: labels 0, 0, 1, 4; two are right, one is wrong, one is not known; six positives.
    assert [figures[f"{name}_1"] for name in ("P", "R", "F1")] == [66.67, 33.33, 44.44]
    # k = 2: 0 2, 0 1, 1 3, 4 0: right 0, 1, 1, 0; wrong 2, 0, 3.
    assert [figures[f"{name}_2"] for name in ("P", "R", "F1")] == [57.14, 66.67, 61.54]
    # k = 5 would be all labels, whatever the scores.
    assert not [name for name in figures if name.endswith("_5")]
    assert open_figures(SCORES, LABELS, (5,), "zero").keys() == {"mAP", "empty_labels"}


@pytest.mark.parametrize("k", [1, 3, 5])
def test_figures_equal_torchmetrics_on_the_scattered_highest(k: int) -> None:
    scores, labels = drawn(200, 17)
    truth = torch.from_numpy(labels)
    highest = torch.from_numpy(scores).topk(k, dim=1).indices
    predicted = torch.zeros(200, 17).scatter_(1, highest, 1.0)
    f1 = multilabel_f1_score(predicted, truth, num_labels=17, average="micro", ignore_index=-1)
    figures = open_figures(scores, labels, (k,), "zero")
    assert figures[f"F1_{k}"] == pytest.approx(100 * f1.item(), abs=0.005)
    each = multilabel_average_precision(torch.from_numpy(scores), truth, num_labels=17, average="none", ignore_index=-1)
    assert figures["mAP"] == pytest.approx(100 * each.mean().item(), abs=0.005)


def test_exactly_k_labels_of_every_image_are_counted() -> None:
    scores, labels = drawn(50, 9)
    labels = np.abs(labels)
    figures = open_figures(scores, labels, (4,), "zero")
    right = round(figures["P_4"] / 100 * 4 * 50)
    assert figures["P_4"] == round(100 * right / 200, 2)
    assert figures["R_4"] == round(100 * right / labels.sum(), 2)


@quick
@given(st.integers(0, 99), st.sampled_from(["skip", "zero"]), st.floats(0.1, 10), st.floats(-5, 5))
def test_only_the_order_of_scores_counts(seed: int, rule: str, factor: float, shift: float) -> None:
    scores, labels = drawn(6, 5, seed)
    moved = np.float32(factor) * scores + np.float32(shift)
    assert open_figures(moved, labels, (1, 3), rule) == open_figures(scores, labels, (1, 3), rule)  # type: ignore[arg-type]


@quick
@given(st.integers(0, 99))
def test_recall_grows_with_k_to_that_of_all_but_the_lowest(seed: int) -> None:
    scores, labels = drawn(6, 5, seed)
    labels[0, 0] = 1
    figures = open_figures(scores, labels, range(1, 6), "skip")
    recall = [figures[f"R_{k}"] for k in range(1, 5)]
    assert recall == sorted(recall)
    lowest = (labels[np.arange(6), scores.argmin(axis=1)] == 1).sum()
    assert recall[-1] == round(100 * (1 - lowest / (labels == 1).sum()), 2)


def test_nothing_known_has_no_figures_and_nothing_present_no_mean() -> None:
    assert open_figures(SCORES, np.full_like(LABELS, -1), (3,), "zero") == {}
    absent = open_figures(SCORES, np.zeros_like(LABELS), (3,), "skip")
    assert absent == {"mAP": None, "P_3": 0.0, "R_3": 0.0, "F1_3": 0.0, "empty_labels": 5}
    assert open_figures(SCORES, np.zeros_like(LABELS), (3,), "zero")["mAP"] == 0


# What the released code computes in their place


def released_average_precisions(scores: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Average precision of each label as the released code has it; labels 1, -1 and, for unknown, 0."""
    result = []
    for column, truth in zip(scores.T, labels.T, strict=True):
        known = truth != 0
        order = column[known].argsort(descending=True, stable=True)
        right = (truth[known][order] == 1).double()
        precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
        result.append(float((precision * right).sum() / right.sum()) if right.sum() else 0.0)
    return result


def released_f1(scores: torch.Tensor, labels: torch.Tensor, k: int) -> tuple[float, float, float]:
    """Precision, recall and F1 at k as the released code has them: it writes the predictions over the scores."""
    highest = scores.topk(dim=1, k=k)[1]
    scores.fill_(0)
    scores.scatter_(dim=1, index=highest, src=torch.ones(len(scores), k))
    right = float((labels[scores == 1] == 1).sum())
    precision, recall = right / (k * len(scores)), right / float((labels == 1).sum())
    return precision, recall, 2 * precision * recall / (precision + recall)


def test_the_released_order_of_figures_matters_and_ours_does_not() -> None:
    scores, labels = drawn(60, 8)
    labels = np.abs(labels)
    given, truth = torch.from_numpy(scores.copy()), torch.from_numpy(np.where(labels == 1, 1, -1))
    before = released_average_precisions(given, truth)
    at = released_f1(given, truth, 3)
    after = released_average_precisions(given, truth)
    assert abs(np.mean(before) - np.mean(after)) > 0.01

    kept = scores.copy()
    figures = open_figures(scores, labels, (3,), "zero")
    assert np.array_equal(scores, kept)
    assert open_figures(scores, labels, (3, 3), "zero") == figures
    assert figures["mAP"] == pytest.approx(100 * np.mean(before), abs=0.006)
    assert [figures[f"{name}_3"] for name in ("P", "R", "F1")] == pytest.approx(
        [100 * value for value in at], abs=0.006
    )


def test_the_released_mean_counts_a_label_without_positives_as_0() -> None:
    truth = torch.from_numpy(np.select([LABELS == 1, LABELS == 0], [1, -1], 0))
    found = released_average_precisions(torch.from_numpy(SCORES), truth)
    assert found == pytest.approx([*(value / 100 for value in PRECISIONS), 0.0])
    assert open_figures(SCORES, LABELS, (), "zero")["mAP"] == pytest.approx(100 * np.mean(found), abs=0.005)


# compare

NAMES = ["dog", "cat", "dogs", "sky", "sea"]
SEEN = [True, True, False, False, False]


def predicted(seed: int = 0) -> dict[str, np.ndarray]:
    """Two rows, each with scores of its own for the unseen labels alone."""
    rng = np.random.default_rng(seed)
    return {
        f"{row}{part}": rng.random((4, columns), dtype=np.float32)
        for row in ("student", "clip")
        for part, columns in (("", 5), ("_zsl", 3))
    }


def test_rows_have_zero_shot_and_generalised_figures() -> None:
    scores = predicted()
    found = compare(scores, LABELS, NAMES, SEEN, (), (1, 2), "zero")
    assert list(found) == ["zsl", "gzsl", "clip"]
    assert found["zsl"] == open_figures(scores["student_zsl"], LABELS[:, 2:], (1, 2), "zero")
    assert found["gzsl"] == open_figures(scores["student"], LABELS, (1, 2), "zero")
    assert found["clip"] == {
        "zsl": open_figures(scores["clip_zsl"], LABELS[:, 2:], (1, 2), "zero"),
        "gzsl": open_figures(scores["clip"], LABELS, (1, 2), "zero"),
    }
    assert found["zsl"] != found["clip"]["zsl"]


def test_unseen_labels_need_not_come_last() -> None:
    scores = predicted()
    found = compare(scores, LABELS, NAMES, [False, True, False, True, False], (), (1,), "skip")
    assert found["zsl"] == open_figures(scores["student_zsl"], LABELS[:, [0, 2, 4]], (1,), "skip")


def test_strict_figures_leave_twins_of_seen_labels_out() -> None:
    scores = predicted()
    found = compare(scores, LABELS, NAMES, SEEN, {"dogs"}, (1,), "zero")
    assert list(found["clip"]) == ["zsl", "zsl_strict", "gzsl"]
    assert found["zsl_strict"] == open_figures(scores["student_zsl"][:, 1:], LABELS[:, 3:], (1,), "zero")
    assert found["gzsl"] == compare(scores, LABELS, NAMES, SEEN, (), (1,), "zero")["gzsl"]
    # Nothing is left where all are twins.
    assert "zsl_strict" not in compare(scores, LABELS, NAMES, SEEN, set(NAMES[2:]), (1,), "zero")


def test_a_closed_vocabulary_has_generalised_figures_alone() -> None:
    scores = {"student": SCORES, "clip": SCORES[:, ::-1]}
    found = compare(scores, LABELS, NAMES, [True] * 5, (), (1,), "zero")
    assert found == {
        "gzsl": open_figures(SCORES, LABELS, (1,), "zero"),
        "clip": {"gzsl": open_figures(SCORES[:, ::-1], LABELS, (1,), "zero")},
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip": SCORES[:3]}, r"scores \[3, 5\] of clip and ground truth \[4, 5\] .*, or not to 5 labels: run"),
        ({"clip": SCORES[:, :4]}, r"scores \[4, 4\] of clip"),
        ({"student_zsl": SCORES[:, :2]}, r"scores \[4, 2\] of student_zsl and ground truth \[4, 3\] .* 3 labels"),
        ({"clip_zsl": SCORES[:3, :3]}, r"scores \[3, 3\] of clip_zsl"),
    ],
)
def test_scores_of_other_labels_or_images_are_refused(changed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        compare(predicted() | changed, LABELS, NAMES, SEEN, {"dogs"}, (1,), "zero")


def test_ground_truth_of_other_labels_is_refused() -> None:
    scores = {"student": SCORES[:, :4]}
    with pytest.raises(ArtifactError, match=r"scores \[4, 4\] of student and ground truth \[4, 4\] .* 5 labels"):
        compare(scores, LABELS[:, :4], NAMES, [True] * 5, (), (1,), "zero")
