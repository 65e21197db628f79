"""The multiplier from samples: a convex function of it, solved to the last bit, or an error that says which budgets there are."""

import numpy as np
import pytest

from srlhfv_jax.errors import UserError
from srlhfv_jax.losses import dual

N, G, BETA = 40, 8, 0.3
RNG = np.random.default_rng(4)
REWARD = RNG.normal(size=(N, G))
COST = 0.8 * REWARD + RNG.normal(size=(N, G))  # the helpful answers are the harmful ones
LENGTH = RNG.normal(size=(N, G)) - 0.3 * COST
LOWEST, FREE = dual.feasible_range(REWARD, COST, BETA)


def policy(score):
    weight = np.exp(score / BETA)
    return weight / weight.sum(1, keepdims=True)


def cost_of(score, cost=COST):
    return np.mean(np.sum(policy(score) * cost, axis=1))


def test_two_answers_have_their_multiplier_in_closed_form():
    """Of one prompt, (r, c) = (1, 1) and (0, 0): π(first) = σ((1 - λ)/β), and the budget says which π(first) it is."""
    for budget in (0.05, 0.3, 0.6):
        lam = dual.solve(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]), budget, BETA, ceiling=100.0)
        assert lam == pytest.approx(1 - BETA * np.log(budget / (1 - budget)), rel=1e-12)
    (lowest, free) = dual.feasible_range(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]), BETA)
    assert lowest == 0 and free == pytest.approx(1 / (1 + np.exp(-1 / BETA)))


@pytest.mark.parametrize("lam", [0.0, 0.4, 3.7])
def test_the_gradient_is_that_of_the_dual_function(lam):
    step = 1e-5
    ends = [dual.value(lam + move, REWARD, COST, -0.25, BETA) for move in (-step, step)]
    slope = dual.gradient(lam, REWARD, COST, -0.25, BETA)
    assert slope == pytest.approx((ends[1] - ends[0]) / (2 * step), abs=1e-8)
    assert slope == pytest.approx(-0.25 - cost_of(REWARD - lam * COST), abs=1e-12)


def test_the_dual_function_is_its_formula():
    by_hand = np.mean(BETA * np.log(np.mean(np.exp((REWARD + 0.7 * (-0.25 - COST)) / BETA), axis=1)))
    assert dual.value(0.7, REWARD, COST, -0.25, BETA) == pytest.approx(by_hand, rel=1e-12)


def test_cost_falls_with_the_multiplier_from_one_end_of_the_range_to_the_other():
    costs = [dual.expected_cost(lam, REWARD, COST, BETA) for lam in np.linspace(0, 30, 50)]
    assert costs[0] == FREE == pytest.approx(cost_of(REWARD)) and np.all(np.diff(costs) < 0)
    assert dual.expected_cost(1e6, REWARD, COST, BETA) == pytest.approx(COST.min(1).mean()) == LOWEST


def test_the_budget_is_spent_and_no_multiplier_is_needed_inside_it():
    for budget in (-1.2, -0.25, 0.1):
        lam = dual.solve(REWARD, COST, budget, BETA, ceiling=100.0)
        assert lam > 0 and cost_of(REWARD - lam * COST) == pytest.approx(budget, abs=1e-10)
    assert dual.solve(REWARD, COST, FREE, BETA, ceiling=100.0) == 0
    assert dual.solve(REWARD, COST, FREE + 0.5, BETA, ceiling=100.0) == 0


def test_a_looser_budget_never_needs_a_larger_multiplier():
    lams = [dual.solve(REWARD, COST, budget, BETA, ceiling=1000.0) for budget in np.linspace(LOWEST + 0.01, FREE + 0.2, 30)]
    assert np.all(np.diff(lams) <= 0) and lams[0] > 1 and lams[-1] == 0


def test_the_solution_is_the_minimum():
    lam = dual.solve(REWARD, COST, -0.25, BETA, ceiling=100.0)
    least = dual.value(lam, REWARD, COST, -0.25, BETA)
    assert all(least < dual.value(lam + move, REWARD, COST, -0.25, BETA) for move in (-0.3, -1e-3, 1e-3, 0.3))


def test_units_and_origin_of_the_scores_do_not_matter():
    lam = dual.solve(REWARD, COST, -0.25, BETA, ceiling=100.0)
    prompts = RNG.normal(size=(N, 1))  # a reward that is the same for all answers to a prompt says nothing
    assert dual.solve(REWARD + prompts, COST, -0.25, BETA, ceiling=100.0) == pytest.approx(lam)
    assert dual.solve(REWARD, 10 * COST, -2.5, BETA, ceiling=100.0) == pytest.approx(lam / 10)
    assert dual.solve(REWARD, COST + 3.5, 3.25, BETA, ceiling=100.0) == pytest.approx(lam)
    assert dual.solve(1e4 * REWARD, 1e4 * COST, -2500.0, 1e4 * BETA, ceiling=100.0) == pytest.approx(lam)


def test_scores_in_float32_are_solved_in_float64():
    reward, cost = REWARD.astype(np.float32), COST.astype(np.float32)
    lam = dual.solve(reward, cost, -0.25, BETA, ceiling=100.0)
    assert cost_of(reward.astype(float) - lam * cost.astype(float), cost.astype(float)) == pytest.approx(-0.25, abs=1e-10)


@pytest.mark.parametrize("below", [0.0, 0.25])
def test_a_budget_below_all_samples_is_an_error_with_the_range(below):
    with pytest.raises(
        UserError, match=f"above {LOWEST:.6g}, .*the reward alone costs {FREE:.6g}.*, got {LOWEST - below}: raise it"
    ) as caught:
        dual.solve(REWARD, COST, LOWEST - below, BETA, ceiling=100.0)
    assert "\n" not in str(caught.value)


def test_a_budget_that_needs_more_than_the_ceiling_is_an_error_with_what_the_ceiling_reaches():
    reached = cost_of(REWARD - 0.5 * COST)
    with pytest.raises(
        UserError, match=f"must lie above {reached:.6g}, .* multiplier, 0.5 .*, got -1.2: raise one of the two"
    ) as caught:
        dual.solve(REWARD, COST, -1.2, BETA, ceiling=0.5)
    assert "\n" not in str(caught.value)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(AssertionError):
        dual.solve(REWARD, np.where(COST == COST[2, 3], np.nan, COST), -0.25, BETA, ceiling=100.0)


COSTS = {"harm": COST, "length": LENGTH}
CEILINGS = {"harm": 100.0, "length": 100.0}


def optimum(budgets, ceilings=CEILINGS):
    lams = dual.solve_all(REWARD, COSTS, budgets, BETA, ceilings=ceilings)
    score = REWARD - sum(lams[key] * COSTS[key] for key in COSTS)
    return lams, {key: cost_of(score, COSTS[key]) for key in COSTS}


def test_one_constraint_of_several_is_solved_as_alone():
    alone = dual.solve(REWARD, COST, -0.25, BETA, ceiling=100.0)
    assert dual.solve_all(REWARD, {"harm": COST}, {"harm": -0.25}, BETA, ceilings={"harm": 100.0}) == {"harm": alone}


@pytest.mark.parametrize(("harm", "length"), [(-0.5, -0.4), (-0.5, 5.0), (5.0, -0.4), (5.0, 5.0), (0.2, 0.1), (-0.9, 0.05)])
def test_several_multipliers_meet_the_conditions_of_karush_kuhn_and_tucker(harm, length):
    """Each is at least 0, each budget is kept, and where the one is above 0 the other is spent."""
    budgets = {"harm": harm, "length": length}
    lams, costs = optimum(budgets)
    for key, budget in budgets.items():
        assert lams[key] >= 0 and costs[key] <= budget + 1e-5, key
        assert lams[key] * abs(costs[key] - budget) < 1e-5, key
    assert all(lams[key] == 0 for key in budgets if budgets[key] == 5.0)


def test_what_cannot_be_kept_is_at_its_ceiling_and_the_others_are_solved_with_it():
    lams, costs = optimum({"harm": COST.min() - 1, "length": -0.1}, {"harm": 2.5, "length": 100.0})
    assert lams["harm"] == 2.5 and costs["harm"] > COST.min()
    assert lams["length"] == 0 or costs["length"] == pytest.approx(-0.1, abs=1e-5)
    alone = dual.solve(REWARD - 2.5 * COST, LENGTH, -0.1, BETA, ceiling=100.0)
    assert lams["length"] == pytest.approx(alone, abs=1e-9) and alone > 0


def test_a_constraint_that_is_there_twice_is_one():
    lams = dual.solve_all(REWARD, {"a": COST, "b": COST}, {"a": -0.25, "b": -0.25}, BETA, ceilings={"a": 100.0, "b": 100.0})
    assert lams["a"] + lams["b"] == pytest.approx(dual.solve(REWARD, COST, -0.25, BETA, ceiling=100.0), abs=1e-6)


def test_multipliers_that_do_not_settle_are_an_error(monkeypatch):
    monkeypatch.setattr(dual, "SWEEPS", 1)
    with pytest.raises(UserError, match="multipliers of harm, length must settle within 1 sweeps, got .*: of costs that"):
        optimum({"harm": -0.5, "length": -0.4})
