"""Numbers of a guard against values worked out by hand."""

import numpy as np
import pytest

from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import measure

SCORE = np.array([0.9, 0.8, 0.6, 0.55, 0.4, 0.3, 0.2, 0.1])
UNSAFE = np.array([True, True, False, True, False, False, True, False])


def test_the_threshold_keeps_the_false_positive_rate():
    # Safe rows score 0.6, 0.4, 0.3, 0.1. One of four may be flagged: t >= 0.4, and up to 0.55 every t does the same.
    assert measure.threshold(SCORE, UNSAFE, 0.25) == pytest.approx((0.4 + 0.55) / 2)
    # None may: t >= 0.6, up to 0.8.
    assert measure.threshold(SCORE, UNSAFE, 0.0) == pytest.approx((0.6 + 0.8) / 2)
    for rate in (0.0, 0.1, 0.25, 0.3, 0.5, 0.75):
        assert (SCORE[~UNSAFE] > measure.threshold(SCORE, UNSAFE, rate)).mean() <= rate


def test_below_that_rate_the_threshold_is_half_the_best_f1():
    # Best: above 0.4, with TP 3, FP 1, FN 1; two of four may be flagged, t >= 0.3.
    assert measure.threshold(SCORE, UNSAFE, 0.5) == pytest.approx(0.75 / 2)
    # Wherever the gap between safe and unsafe scores lies, few rows do not move the threshold away from 1/2.
    for low, high in ((0.06, 0.12), (0.4, 0.6), (0.7, 0.95)):
        score, unsafe = np.array([0.97, high, low, 0.04, 0.02]), np.array([True, True, False, False, False])
        assert measure.threshold(score, unsafe, 0.9) == pytest.approx(0.5)


@pytest.mark.parametrize("shape", [(0.4, 1.3), (0.7, 0.7), (0.25, 0.5)])
def test_for_probabilities_that_are_right_few_rows_give_the_threshold_of_the_best_f1(shape):
    """The expected F1 at the threshold of 120 rows is within .02 of the best one at any threshold, and above that of the t with the
    best F1 on the same rows."""
    rng = np.random.default_rng(3)
    score = rng.beta(*shape, size=100_000)

    def expected_f1(t: float) -> float:
        return 2 * score[score > t].sum() / (score.sum() + (score > t).sum())

    best = max(expected_f1(t) for t in np.linspace(0.01, 0.99, 99))
    ours, luck = [], []
    for _ in range(40):
        some = rng.choice(score, 120)
        unsafe = rng.random(120) < some
        ours.append(expected_f1(measure.threshold(some, unsafe, 0.999)))
        luck.append(expected_f1(max(some, key=lambda t: np.sum(2 * unsafe[some >= t]) / (unsafe.sum() + np.sum(some >= t)))))
    assert best - 0.02 < np.mean(ours) <= best + 1e-9
    assert np.mean(ours) > np.mean(luck)


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
