"""Figures of tags, on a table made by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clipdistill.evaluation.tag_figures import THRESHOLDS, sweep, tag_figures, truth_of


def test_a_table_made_by_hand() -> None:
    truth = truth_of([["boat", "house", "day"], ["cup", "story"]], [["house", "boat"], ["cup"]])
    assert truth.tolist() == [True, True, False, True, False]
    chosen = np.array([True, False, True, True, False])
    # 2 of 3 chosen are right, 2 of 3 true ones are found; of 5 words and 5 function words 8 are right.
    assert tag_figures(chosen, truth, dropped=5) == {"P": 66.67, "R": 66.67, "F1": 66.67, "Acc": 80.0}


def test_nothing_chosen_has_no_precision() -> None:
    assert tag_figures(np.zeros(2, bool), np.array([True, False])) == {"P": 0.0, "R": 0.0, "F1": 0.0, "Acc": 50.0}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40), st.integers(0, 20))
def test_f1_is_the_harmonic_mean_and_function_words_change_accuracy_alone(
    pairs: list[tuple[bool, bool]], dropped: int
) -> None:
    chosen, truth = (np.array(column) for column in zip(*pairs, strict=True))
    found, without = tag_figures(chosen, truth, dropped), tag_figures(chosen, truth)
    assert {key: found[key] for key in ("P", "R", "F1")} == {key: without[key] for key in ("P", "R", "F1")}
    right = int((chosen == truth).sum()) + dropped
    assert abs(found["Acc"] - 100 * right / (len(pairs) + dropped)) < 0.01
    if found["P"] + found["R"]:
        assert abs(found["F1"] - 2 * found["P"] * found["R"] / (found["P"] + found["R"])) < 0.02


def test_a_sweep_has_every_threshold_and_recall_falls() -> None:
    rows = sweep({"pixel": np.array([0.1, 0.5, 0.9], np.float32)}, np.array([True, True, True]), 0)
    assert [row["threshold"] for row in rows] == list(THRESHOLDS)
    recalls = [row["R"] for row in rows]
    assert recalls == sorted(recalls, reverse=True)
    # A score that equals the threshold counts.
    assert rows[THRESHOLDS.index(0.5)]["R"] == 66.67
