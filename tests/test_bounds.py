"""Upper confidence bounds of a mean: closed forms by hand, coverage by simulation, and what they reduce to."""

import math

import numpy as np
import pytest
from scipy import stats

from srlhfv_jax.evaluation import bounds
from srlhfv_jax.evaluation.bounds import Interval

ERROR = 0.05
COSTS = Interval(-1.5, 2.5)


def ones(count: int, of: int, seed: int = 0) -> np.ndarray:
    values = np.r_[np.ones(count), np.zeros(of - count)]
    return np.random.default_rng(seed).permutation(values)


def test_hoeffding_is_its_closed_form():
    values = np.array([0.25, 0.5, 0.125, 0.75])
    assert bounds.hoeffding(values, 0.1) == pytest.approx(0.40625 + math.sqrt(math.log(10) / 8))
    assert bounds.hoeffding(values, 0.1, COSTS) == pytest.approx(0.40625 + 4 * math.sqrt(math.log(10) / 8))


def test_empirical_bernstein_is_its_closed_form():
    values = np.array([0.5, 0.25, 0.75, 0.5])  # variance 1/24
    expected = 0.5 + math.sqrt(2 / 24 * math.log(40) / 4) + 7 * math.log(40) / 9
    assert bounds.empirical_bernstein(values, ERROR) == pytest.approx(expected)


def test_clopper_pearson_solves_the_binomial_tail():
    for events, of in ((0, 30), (3, 47), (29, 30)):
        bound = bounds.clopper_pearson(events, of, ERROR)
        assert stats.binom.cdf(events, of, bound) == pytest.approx(ERROR, rel=1e-6)
    assert bounds.clopper_pearson(0, 59, ERROR) == pytest.approx(1 - ERROR ** (1 / 59))  # the rule of three, exactly
    assert bounds.clopper_pearson(30, 30, ERROR) == 1


def test_betting_on_zeros_is_a_product_of_bets():
    """With two zeros the bets are known: the first from the prior, the second from mean 1/4 and variance (1/4 + 1/16) / 2."""
    log = -2 * math.log(ERROR)
    first, second = min(0.5 * math.sqrt(log / (2 * 0.25)), 0.75), min(0.75 * math.sqrt(log / (2 * 0.15625)), 0.75)
    bound = bounds.betting(np.zeros(2), ERROR)
    odds = bound / (1 - bound)
    assert (1 + first * odds) * (1 + second * odds) == pytest.approx(1 / ERROR)


def test_betting_does_not_depend_on_the_unit():
    values = np.random.default_rng(3).beta(0.5, 4.0, 60)
    expected = COSTS.low + COSTS.width * bounds.betting(values, ERROR)
    assert bounds.betting(COSTS.low + COSTS.width * values, ERROR, COSTS) == pytest.approx(expected)


def test_betting_on_nothing_but_the_worst_says_nothing():
    assert bounds.betting(np.ones(40), ERROR) == 1


@pytest.mark.parametrize("method", bounds.SAMPLE)
def test_a_bound_lies_above_the_mean_and_closes_in_on_it(method):
    widths = [bounds.upper(method, ones(count // 10, count), ERROR) - 0.1 for count in (50, 500, 5000)]
    assert widths[0] > widths[1] > widths[2] > 0 and widths[2] < 0.03


def test_of_rare_events_the_exact_bound_is_the_lowest_and_hoeffding_the_highest():
    found = {method: bounds.upper(method, ones(4, 400), ERROR) for method in bounds.SAMPLE}
    assert found["clopper_pearson"] < found["betting"] < found["empirical_bernstein"] < found["hoeffding"]


@pytest.mark.parametrize("method", bounds.SAMPLE)
@pytest.mark.parametrize(("mean", "count"), [(0.04, 60), (0.35, 40)])
def test_the_true_mean_is_above_the_bound_in_no_more_samples_than_the_error(method, mean, count):
    draws = (np.random.default_rng(1).random((400, count)) < mean).astype(float)
    missed = sum(bounds.upper(method, values, 0.1) < mean for values in draws)
    assert missed <= stats.binom.ppf(0.999, 400, 0.1)


@pytest.mark.parametrize("flips", [0.0, 0.2])
def test_prediction_powered_bounds_cover_however_wrong_the_scores_are(flips):
    rng, missed = np.random.default_rng(2), 0
    for _ in range(200):
        truth = (rng.random(300) < 0.15).astype(float)
        scores = np.where(rng.random(300) < flips, 0.0, truth)  # a scorer that overlooks a part of the harm
        missed += bounds.prediction_powered(scores, truth[:60], scores[:60], 0.1).upper < 0.15
    assert missed <= stats.binom.ppf(0.999, 200, 0.1)


def test_without_bias_the_corrected_mean_is_the_plain_mean_of_all_scores():
    scores = np.random.default_rng(4).beta(0.4, 3.0, 2000)
    found = bounds.prediction_powered(scores, scores[:50], scores[:50], ERROR)
    assert found.mean == pytest.approx(scores.mean(), abs=1e-12) and found.bias == 0
    uncertain = bounds.prediction_powered(scores, 1 - scores[:50], scores[:50], ERROR)
    assert scores.mean() < found.upper < uncertain.upper


def test_the_corrected_mean_adds_what_the_scores_are_wrong_by():
    scores, labels = np.array([0.25, 0.5, 0.0, 0.75]), np.array([0.5, 1.0])
    assert bounds.prediction_powered(scores, labels, scores[:2], ERROR).mean == pytest.approx(0.375 + 0.375)


def test_the_sample_needed_is_the_least_one_that_is_enough():
    def bound(count: int) -> float:
        return bounds.clopper_pearson(0, count, ERROR)

    assert bounds.sample_needed(bound, 10, 0.05) == 59 and bound(58) > 0.05 >= bound(59)
    assert bounds.sample_needed(bound, 80, 0.05) == 80
    assert bounds.sample_needed(lambda count: 0.2, 10, 0.05) is None


def test_a_repeated_sample_looks_like_the_first():
    values = ones(3, 30)
    assert bounds.repeated(values, 300).mean() == pytest.approx(0.1) and len(bounds.repeated(values, 77)) == 77


@pytest.mark.parametrize(
    ("values", "error", "interval"),
    [([0.5], 0.05, bounds.UNIT), ([0.5, 1.5], 0.05, bounds.UNIT), ([0.5, 0.25], 1.0, bounds.UNIT)],
)
def test_too_few_values_others_than_promised_and_no_error_are_refused(values, error, interval):
    with pytest.raises(ValueError):
        bounds.hoeffding(np.array(values), error, interval)
