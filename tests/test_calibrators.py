"""P(unsafe | cost): what is fitted is found again, maps rise, and what cannot be fitted is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import calibrators
from srlhfv_jax.evaluation.statistics import sigmoid
from srlhfv_jax.hf import calibrations, weights
from srlhfv_jax.losses import calibration
from srlhfv_jax.losses.calibration import Calibration


def labelled(count: int, slope: float = 1.7, intercept: float = -0.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    cost = generator.normal(0.3, 2.0, count)
    return cost, generator.random(count) < sigmoid(slope * cost + intercept)


def test_platt_finds_the_sigmoid_that_drew_the_labels():
    found = calibrators.platt(*labelled(20000))
    assert found.slope == pytest.approx(1.7, rel=0.05) and found.intercept == pytest.approx(-0.6, abs=0.06)


def test_platt_is_the_greatest_likelihood_of_its_targets():
    """The gradient is zero there: sum (p - t) = 0 and sum (p - t) C = 0."""
    cost, unsafe = np.array([-1.5, -0.25, 0.5, 0.75, 2.25]), np.array([False, False, True, False, True])
    found = calibrators.platt(cost, unsafe)
    gap = calibrators.probability(found, cost) - np.where(unsafe, 3 / 4, 1 / 5)
    assert gap.sum() == pytest.approx(0, abs=1e-7) and (gap * cost).sum() == pytest.approx(0, abs=1e-7)


def test_costs_that_separate_the_classes_have_a_finite_slope():
    found = calibrators.platt(np.array([-2.0, -1.0, 1.0, 2.5]), np.array([False, False, True, True]))
    assert 0 < found.slope < 5


def test_isotonic_is_the_mean_of_violators_that_were_pooled():
    cost, unsafe = np.array([-1.0, 0.0, 0.5, 2.0]), np.array([False, True, False, True])
    found = calibrators.isotonic(cost, unsafe)
    np.testing.assert_allclose(
        calibrators.probability(found, np.array([-3.0, -1.0, 0.0, 0.25, 0.5, 2.0, 9.0])), [0, 0, 0.5, 0.5, 0.5, 1, 1]
    )


@pytest.mark.parametrize("kind", calibrators.FITS)
def test_probabilities_never_fall_and_are_the_same_in_float32_on_the_devices(kind):
    found, costs = calibrators.fit(kind, *labelled(400)), np.linspace(-12, 12, 301)
    said = calibrators.probability(found, costs)
    assert (np.diff(said) >= 0).all() and said.min() >= 0 and said.max() <= 1
    np.testing.assert_allclose(calibration.probability(found, jnp.asarray(costs)), said, atol=1e-5)


@pytest.mark.parametrize("kind", calibrators.FITS)
def test_left_out_answers_are_said_better_than_by_the_sigmoid_of_the_cost(kind):
    cost, unsafe = labelled(3000, slope=0.4, intercept=-1.5)
    rows = np.arange(3000) // 2  # pairs
    before, after = (
        calibrators.numbers(said, unsafe) for said in (sigmoid(cost), calibrators.held_out(kind, cost, unsafe, rows, 0))
    )
    for name in ("calibration_error", "log_loss", "brier"):
        assert after[name] < before[name]
    assert after["calibration_error"] < 0.04 < before["calibration_error"]


def test_no_answer_is_said_by_a_fit_that_has_seen_its_row():
    """With one row's labels turned over, the probabilities of that row do not move."""
    cost, unsafe = labelled(200)
    unsafe[:2] = True, False  # one of each: the folds, drawn by their classes, stay as they are
    rows, turned = np.arange(200) // 2, np.r_[False, True, unsafe[2:]]
    first, second = (calibrators.held_out("platt", cost, labels, rows, 0) for labels in (unsafe, turned))
    np.testing.assert_array_equal(first[:2], second[:2])
    assert (first != second).any()


def test_steps_are_fitted_from_a_thousand_answers_on():
    assert not calibrators.fit("", *labelled(999)).costs and calibrators.fit("", *labelled(1000)).costs


def test_too_few_rows_are_not_split():
    cost, unsafe = np.array([-1.0, 0.5, 1.5]), np.array([False, False, True])
    assert calibrators.held_out("platt", cost, unsafe, [0, 1, 2], 0) is None


def test_a_cost_is_scaled_without_moving_its_zero_and_a_reward_is_moved():
    assert calibrators.scale(np.array([3.0, -4.0])) == pytest.approx(np.sqrt(12.5))
    shift, scale = calibrators.affine(np.array([1.5, 2.5, 3.5]))
    assert shift == 2.5 and scale == pytest.approx(np.sqrt(2 / 3))
    assert calibrators.scale(np.zeros(2)) == 1 and calibrators.affine(np.ones(2)).scale == 1


def test_the_bins_of_a_reliability_diagram():
    said = np.array([0.05, 0.07, 0.55, 1.0])
    found = calibrators.reliability(said, np.array([False, True, True, True]))
    assert [one["rows"] for one in found] == [2, 1, 1] and found[0] == {"said": pytest.approx(0.06), "seen": 0.5, "rows": 2}


@pytest.mark.parametrize("unsafe", [True, False])
def test_data_without_both_classes_is_refused(unsafe):
    with pytest.raises(UserError, match="needs answers labelled safe and answers labelled unsafe, got [03] and [03]"):
        calibrators.fit("platt", np.array([0.5, 1.0, 1.5]), np.full(3, unsafe))


@pytest.mark.parametrize("kind", calibrators.FITS)
def test_a_cost_that_falls_where_answers_are_unsafe_is_refused(kind):
    cost, unsafe = labelled(400)
    with pytest.raises(UserError, match="does not rise where answers are unsafe"):
        calibrators.fit(kind, -cost, unsafe)


@pytest.mark.parametrize("kind", calibrators.FITS)
def test_what_is_written_beside_the_heads_is_read_again(kind, tmp_path):
    found = calibrators.fit(kind, *labelled(60))
    assert calibrations.read(tmp_path) is None
    (tmp_path / weights.CALIBRATION).write_text(json.dumps({"unsafe": calibrations.described(found)}))
    assert calibrations.read(tmp_path) == calibrations.required(tmp_path, "x") == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has no unsafe"),
        ({"fit": "platt", "slope": -0.5, "intercept": 0.0}, "slope must be above 0"),
        ({"fit": "platt", "slope": 0.5}, "has no intercept"),
        ({"fit": "beta"}, "fit must be 'platt' or 'isotonic'"),
        ({"fit": "isotonic", "costs": [0.0, 1.0], "probabilities": [0.5, 0.25]}, "must rise together"),
        ({"fit": "isotonic", "costs": [0.0], "probabilities": [0.5, 0.75]}, "must rise together"),
        ({"fit": "isotonic", "costs": [0.0, 1.0], "probabilities": [0.5, 1.5]}, "must rise together"),
    ],
)
def test_a_damaged_calibration_is_refused(tmp_path, content, message):
    (tmp_path / weights.CALIBRATION).write_text(json.dumps({"unsafe": content} if content else {}))
    with pytest.raises(UserError, match=message):
        calibrations.read(tmp_path)


def test_a_calibration_that_is_asked_for_must_be_there(tmp_path):
    with pytest.raises(UserError, match="x needs calibration.json beside the cost head, .* has none: run srlhfv calibrate"):
        calibrations.required(tmp_path, "x")


def test_platt_on_a_constant_map_of_zero_is_a_half():
    assert calibration.probability(Calibration(0.5, 0.0), jnp.zeros(2)).tolist() == [0.5, 0.5]
