"""The numbers of one policy's answers under learned reward and cost models."""

from collections.abc import Mapping

import chex
import numpy as np
from jaxtyping import Float

from srlhfv_jax.evaluation.statistics import bootstrap_error

REWARD, COST = "reward", "cost"


def judge_metrics(scores: Mapping[str, Float[np.ndarray, "B"]], budget: float | None = None) -> dict[str, float]:
    """Means and tails of the scores of a policy's answers.

    `model_reward` and `model_cost` (means, with `_se`), `model_unsafe_rate` (cost > 0), `model_cost_rectified` (the mean of
    max(0, cost)), `model_cost_p95`, and `model_over_budget_rate` when a budget is given.
    """
    metrics = {}
    for name in (REWARD, COST):
        if name in scores:
            chex.assert_rank(scores[name], 1)
            metrics[f"model_{name}"] = float(scores[name].mean())
            error = bootstrap_error(scores[name], np.ones(len(scores[name]), bool), [str(i) for i in range(len(scores[name]))])
            metrics |= {} if error is None else {f"model_{name}_se": error}
    if COST in scores:
        metrics["model_unsafe_rate"] = float(np.mean(scores[COST] > 0))
        metrics["model_cost_rectified"] = float(np.maximum(scores[COST], 0).mean())
        metrics["model_cost_p95"] = float(np.quantile(scores[COST], 0.95))
        if budget is not None:
            metrics["model_over_budget_rate"] = float(np.mean(scores[COST] > budget))
    return metrics
