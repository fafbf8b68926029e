"""The plotted precision-recall curve against scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from clipdistill.evaluation import precision_recall


def matrices(rows: int, seed: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(-1, 2, (rows, 5), dtype=np.int8)
    scores = draw.normal(labels, 1.0).round(decimals).astype(np.float32)
    return scores, labels


@pytest.mark.parametrize("decimals", [1, 6])
def test_every_point_is_one_of_scikit_learns(decimals: int) -> None:
    scores, labels = matrices(300, seed=1, decimals=decimals)
    known = labels >= 0
    precision, recall, thresholds = precision_recall_curve(labels[known] == 1, scores[known])
    expected = {float(t): (100 * r, 100 * p) for p, r, t in zip(precision[:-1], recall[:-1], thresholds, strict=True)}
    curve = precision_recall.micro_curve(scores, labels)
    for found_recall, found_precision, threshold in curve:
        assert (found_recall, found_precision) == pytest.approx(expected[float(np.float32(threshold))])


def test_many_thresholds_become_few_points_that_span_the_curve() -> None:
    scores, labels = matrices(2000, seed=2, decimals=6)
    curve = precision_recall.micro_curve(scores, labels, points=100)
    assert 95 <= len(curve) <= 100
    assert (np.diff(curve[:, 0]) > 0).all()
    assert curve[-1, 0] == 100
    assert np.diff(curve[:, 0]).max() < 2
    assert len(precision_recall.micro_curve(scores, labels, points=2)) == 2


def test_the_order_of_rows_does_not_matter_and_ties_are_one_point() -> None:
    scores, labels = matrices(50, seed=3, decimals=0)
    shuffled = np.random.default_rng(0).permutation(50)
    curve = precision_recall.micro_curve(scores, labels)
    np.testing.assert_array_equal(curve, precision_recall.micro_curve(scores[shuffled], labels[shuffled]))
    flat = precision_recall.micro_curve(np.zeros((4, 1), np.float32), np.array([[1], [0], [0], [-1]], np.int8))
    np.testing.assert_allclose(flat, [[100, 100 / 3, 0]])


def test_without_a_positive_the_file_has_a_header_alone(tmp_path: Path) -> None:
    curve = precision_recall.micro_curve(np.ones((3, 2), np.float32), np.full((3, 2), -1, np.int8))
    assert curve.shape == (0, 3)
    precision_recall.write(tmp_path / "curve.csv", curve)
    assert (tmp_path / "curve.csv").read_text() == "recall,precision,threshold\n"


def test_the_file_reads_back(tmp_path: Path) -> None:
    scores, labels = matrices(60, seed=4, decimals=3)
    curve = precision_recall.micro_curve(scores, labels)
    precision_recall.write(tmp_path / "curve.csv", curve)
    read = np.loadtxt(tmp_path / "curve.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(read, curve, atol=0.005)
