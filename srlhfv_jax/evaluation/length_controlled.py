"""Win rate as it would be if the two answers were equally long.

Judges like long answers, and Safe RLHF-V's policy writes half as much again as its base. A logistic model explains the verdicts by
the difference in length and a constant; the constant alone is the answer (AlpacaEval 2, Dubois et al., arXiv 2404.04475, without
its terms for the difficulty of each AlpacaEval instruction, which other prompts do not have).
"""

import chex
import numpy as np
from jaxtyping import Float, Int

from srlhfv_jax.evaluation.statistics import sigmoid

PENALTY = 1e-5  # on the length coefficient, so that it stays finite where length alone predicts every verdict
MAX_INTERCEPT = 30.0  # of the constant: a policy that wins every row has a win rate of 1 at any larger one
STEPS = 100


def length_controlled_win_rate(win_B: Float[np.ndarray, "B"], length_gap_B: Int[np.ndarray, "B"]) -> float | None:
    """P(A beats B at equal length) = sigma(a), where sigma(a + b tanh(gap / std(gap))) fits the verdicts.

    The fit maximises the mean log-likelihood (minus PENALTY b^2) by Newton's method. Swapping the policies gives 1 - it.

    Args:
        win_B: 1 A wins, 0.5 tie, 0 B wins; or A's probability of winning.
        length_gap_B: length of A's answer minus that of B's, in any unit.

    Returns:
        None without rows.
    """
    chex.assert_rank([win_B, length_gap_B], 1)
    chex.assert_equal_shape([win_B, length_gap_B])
    if not len(win_B):
        return None
    spread = length_gap_B.std()
    features = np.stack([np.ones(len(win_B)), np.tanh(length_gap_B / spread) if spread else np.zeros(len(win_B))], axis=1)
    penalty = np.array([0.0, PENALTY])
    weights = np.zeros(2)
    for _ in range(STEPS):
        probability_B = sigmoid(features @ weights)
        slope = features.T @ (win_B - probability_B) / len(win_B) - penalty * weights
        weighted = features * (probability_B * (1 - probability_B))[:, None]
        # The small diagonal keeps the step defined where all gaps are equal, or all verdicts are certain.
        curvature = features.T @ weighted / len(win_B) + np.diag(penalty + 1e-9)
        step = np.clip(np.linalg.solve(curvature, slope), -2.0, 2.0)
        weights = np.clip(weights + step, [-MAX_INTERCEPT, -np.inf], [MAX_INTERCEPT, np.inf])
        if np.abs(step).max() < 1e-10:
            break
    return float(sigmoid(weights[:1])[0])
