"""The multiplier of a constrained alignment problem from samples alone, before anything is trained.

    max_π E[r] - β KL(π || π_ref)  subject to  E[c] <= b,      D(λ) = E_x β log mean_y exp((r + λ (b - c)) / β)

One-shot constrained alignment (arXiv 2405.19544), in the sign of this package: c > 0 is harmful. The best policy for a multiplier is
π_λ(y|x) ∝ π_ref(y|x) exp((r - λ c) / β), on samples of π_ref a softmax over a prompt's N answers. D is convex, its gradient
b - E[c under π_λ] does not decrease in λ, and where that is 0 lies λ*: bisection finds it exactly and needs no step size.

Arrays are [N, G]: N prompts with G sampled answers each. NumPy in float64, on the host. Sampling and scoring are the caller's.
"""

from collections.abc import Callable, Mapping

import chex
import numpy as np
from jaxtyping import Float

from srlhfv_jax.errors import UserError

Scores = Float[np.ndarray, "N G"]
TOLERANCE = 1e-6  # no multiplier of several moves by more: they are solved
SWEEPS = 1000  # over all constraints; the more alike their costs are, the less a sweep brings


def weights(lam: float, reward_NG: Scores, cost_NG: Scores, beta: float) -> Scores:
    """π_λ of the samples: of each prompt's answers they add up to 1."""
    reward_NG, cost_NG = _float64(reward_NG, cost_NG)
    logit_NG = (reward_NG - lam * cost_NG) / beta
    weight_NG = np.exp(logit_NG - np.max(logit_NG, axis=1, keepdims=True))
    return weight_NG / np.sum(weight_NG, axis=1, keepdims=True)


def expected(score_NG: Scores, weight_NG: Scores) -> float:
    """E_x E_y[score] under such weights, in the units of the score."""
    return float(np.mean(np.sum(weight_NG * np.asarray(score_NG, np.float64), axis=1)))


def expected_cost(lam: float, reward_NG: Scores, cost_NG: Scores, beta: float) -> float:
    """E_x E_{π_λ}[c], in the units of the cost; never increases with λ."""
    return expected(cost_NG, weights(lam, reward_NG, cost_NG, beta))


def gradient(lam: float, reward_NG: Scores, cost_NG: Scores, budget: float, beta: float) -> float:
    """dD/dλ = E_x E_{π_λ}[b - c]; never decreases with λ."""
    return budget - expected_cost(lam, reward_NG, cost_NG, beta)


def value(lam: float, reward_NG: Scores, cost_NG: Scores, budget: float, beta: float) -> float:
    """D(λ), in the units of the reward."""
    reward_NG, cost_NG = _float64(reward_NG, cost_NG)
    logit_NG = (reward_NG + lam * (budget - cost_NG)) / beta
    top_N1 = np.max(logit_NG, axis=1, keepdims=True)
    return float(beta * np.mean(top_N1[:, 0] + np.log(np.mean(np.exp(logit_NG - top_N1), axis=1))))


def feasible_range(reward_NG: Scores, cost_NG: Scores, beta: float) -> tuple[float, float]:
    """(E_x min_y c, the cost at λ = 0): a budget up to the first cannot be kept by any λ, from the second on it is kept by λ = 0."""
    return float(np.mean(np.min(*_float64(cost_NG), axis=1))), expected_cost(0.0, reward_NG, cost_NG, beta)


def solve(reward_NG: Scores, cost_NG: Scores, budget: float, beta: float, *, ceiling: float) -> float:
    """λ* = argmin_{λ >= 0} D(λ): 0 where the reward alone keeps the budget.

    Args:
        budget: b, the largest mean cost.
        ceiling: where the search ends.

    Raises:
        UserError: no λ keeps the budget, or none up to the ceiling.
    """
    reward_NG, cost_NG = _checked(reward_NG, cost_NG)
    lowest, free = feasible_range(reward_NG, cost_NG, beta)
    if budget <= lowest:
        raise UserError(
            f"the budget must lie above {lowest:.6g}, the mean over prompts of the cheapest sampled answer (the reward alone costs "
            f"{free:.6g}), got {budget}: raise it, or sample more answers"
        )
    if gradient(ceiling, reward_NG, cost_NG, budget, beta) < 0:
        reached = expected_cost(ceiling, reward_NG, cost_NG, beta)
        raise UserError(
            f"the budget must lie above {reached:.6g}, the cost at the largest multiplier, {ceiling:g} (the reward alone costs {free:.6g}; "
            f"no multiplier goes below {lowest:.6g}), got {budget}: raise one of the two"
        )
    return _root(lambda lam: gradient(lam, reward_NG, cost_NG, budget, beta), ceiling)


def solve_all(
    reward_NG: Scores,
    costs: Mapping[str, Scores],
    budgets: Mapping[str, float],
    beta: float,
    *,
    ceilings: Mapping[str, float],
) -> dict[str, float]:
    """λ* of several constraints, π_λ ∝ π_ref exp((r - Σ_k λ_k c_k) / β): one after another is solved with the others held, until none
    moves. A smooth convex function on a box: this ends at its minimum.

    Args:
        costs, budgets, ceilings: by constraint. One that its ceiling cannot keep stays at the ceiling.

    Raises:
        UserError: they still move after SWEEPS sweeps.
    """
    reward_NG, *scores = _checked(reward_NG, *costs.values())
    costs = dict(zip(costs, scores))
    lams = dict.fromkeys(costs, 0.0)
    for _ in range(SWEEPS):
        before = dict(lams)
        for key, cost_NG in costs.items():
            rest_NG = reward_NG - sum(lams[other] * costs[other] for other in costs if other != key)
            lams[key] = _root(lambda lam: gradient(lam, rest_NG, cost_NG, budgets[key], beta), ceilings[key])
        if all(abs(lams[key] - before[key]) <= TOLERANCE for key in costs):
            return lams
    raise UserError(
        f"the multipliers of {', '.join(costs)} must settle within {SWEEPS} sweeps, got {lams}: of costs that say nearly the same, leave "
        "one out"
    )


def _root(slope: Callable[[float], float], ceiling: float) -> float:
    """The zero in [0, ceiling] of a function that does not decrease, to the last bit; the nearer end where there is none."""
    low, high = 0.0, float(ceiling)
    if slope(low) >= 0:
        return low
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if slope(middle) >= 0 else (middle, high)
    return high


def _float64(*scores: Scores) -> list[Scores]:
    return [np.asarray(one_NG, np.float64) for one_NG in scores]


def _checked(*scores: Scores) -> list[Scores]:
    chex.assert_rank(scores, 2)
    chex.assert_equal_shape(scores)
    chex.assert_tree_all_finite(scores)
    return _float64(*scores)
