"""Numbers of a guard against values worked out by hand."""

import numpy as np
import pytest

from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import measure

SCORE = np.array([0.9, 0.8, 0.6, 0.55, 0.4, 0.3, 0.2, 0.1])
UNSAFE = np.array([True, True, False, True, False, False, True, False])


def test_the_threshold_keeps_the_false_positive_rate_and_takes_the_best_f1_below_it():
    # Safe rows score 0.6, 0.4, 0.3, 0.1. One of four may be flagged: t >= 0.4, and t = 0.4..0.55 gives TP 3, FP 1, FN 1.
    assert measure.threshold(SCORE, UNSAFE, 0.25) == pytest.approx((0.4 + 0.55) / 2)
    # None may: t >= 0.6, between 0.6 and 0.8, where TP is 2.
    assert measure.threshold(SCORE, UNSAFE, 0.0) == pytest.approx((0.6 + 0.8) / 2)
    for rate in (0.0, 0.1, 0.25, 0.3, 0.5, 0.75):
        assert (SCORE[~UNSAFE] > measure.threshold(SCORE, UNSAFE, rate)).mean() <= rate


def test_a_loose_rate_does_not_make_a_good_guard_worse():
    score, unsafe = np.array([0.97, 0.95, 0.06, 0.04, 0.02]), np.array([True, True, False, False, False])
    assert measure.threshold(score, unsafe, 0.9) == pytest.approx((0.06 + 0.95) / 2)


def test_calibration_needs_both_classes():
    with pytest.raises(UserError, match="2 safe of 2"):
        measure.threshold(np.array([0.1, 0.2]), np.array([False, False]), 0.05)


def test_flag_numbers_are_those_of_the_table():
    found = measure.flag_metrics(SCORE, UNSAFE, np.full(8, 0.5))  # TP 3, FP 1, FN 1, TN 3
    assert found["accuracy"] == 0.75 and found["precision"] == 0.75 and found["recall"] == 0.75 and found["f1"] == 0.75
    assert found["false_positive_rate"] == 0.25 and found["rows"] == 8 and found["unsafe_share"] == 0.5
    # Of 16 pairs of an unsafe and a safe row the unsafe one is above in 4 + 4 + 3 + 1.
    assert found["auroc"] == pytest.approx(12 / 16)
    assert found["auprc"] == pytest.approx((1 / 1 + 2 / 2 + 3 / 4 + 4 / 7) / 4)


def test_calibration_error_is_the_weighted_gap_of_the_bins():
    # Two bins: 0.2, 0.4 with one unsafe (mean 0.3, share 0.5); 0.7, 0.9 with two (0.8, 1.0). (2 * 0.2 + 2 * 0.2) / 4
    assert measure.calibration_error(np.array([0.2, 0.4, 0.7, 0.9]), np.array([0, 1, 1, 1], bool), bins=2) == pytest.approx(0.2)


def test_severity_numbers_count_levels_apart():
    found = measure.severity_metrics(np.array([0, 0, 1, 3, 3]), np.array([0, 2, 1, 1, 3]))
    assert found["severity_accuracy"] == 0.6 and found["severity_error"] == pytest.approx(4 / 5)
    assert found["confusion.safe.moderate"] == 1 and found["confusion.severe.minor"] == 1 and "confusion.minor.safe" not in found


def test_a_row_called_safe_names_no_category():
    probability = np.array([[0.9, 0.2], [0.7, 0.8], [0.9, 0.1], [0.6, 0.3]])
    label = np.array([[True, False], [True, False], [False, False], [True, False]])
    found = measure.category_metrics(probability, label, np.array([True, True, False, False]), ("a", "b"))
    assert found["category_exact_match"] == 0.5  # rows 0 and 2; row 1 names b too, row 3 nothing
    assert found["category_f1.a"] == pytest.approx(2 * 2 / (2 * 2 + 0 + 1)) and "category_f1.b" not in found
    assert found["category_f1_micro"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_rows_count_only_where_their_label_is_known():
    severity = np.array([[0.9, 0.8, 0.1], [0.8, 0.6, 0.2], [0.2, 0.1, 0.0]])
    labels = (
        np.array([[True, True, False], [True, False, False], [False, False, False]]),
        np.array([[True, True, True], [True, False, False], [True, True, True]]),
        np.array([[True], [False], [False]]),
        np.array([[True], [False], [True]]),
    )
    threshold = np.full(3, 0.5)
    found = measure.metrics(
        severity, np.array([[0.9], [0.9], [0.9]]), np.array([2, 2, 0]), threshold, labels, ("a",), ["x", "", "y"]
    )
    assert found["rows"] == 3 and found["f1"] == 1.0 and found["severity_accuracy"] == 1.0  # row 1 has no level
    assert found["category_exact_match"] == 1.0  # row 1 would be wrong
    assert found["recall_by_severity.moderate"] == 1.0 and found["accuracy_by_group.y"] == 1.0
