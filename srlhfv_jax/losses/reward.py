"""The reward head: Bradley-Terry on helpfulness preferences."""

import chex
import jax
from jaxtyping import Array, Float

from srlhfv_jax.losses import masked


def reward(
    chosen_B: Float[Array, "B"], rejected_B: Float[Array, "B"], weight_B: Float[Array, "B"], *, score_l2: float
) -> masked.Loss:
    """L = mean_w [ -log σ(R(x, y_w) - R(x, y_l)) + ρ (R(x, y_w)² + R(x, y_l)²) / 2 ].

    Safe RLHF (Dai et al., arXiv 2310.12773), the reward model's loss; ρ = `score_l2` keeps the scores, which the first term fixes
    only up to a constant per prompt, near zero.

    Args:
        chosen_B, rejected_B: end scores of the more and of the less helpful response.
        weight_B: 0 where there is no preference (absent or a tie): the row takes no part.
    """
    chex.assert_rank([chosen_B, rejected_B, weight_B], 1)
    chex.assert_equal_shape([chosen_B, rejected_B, weight_B])
    chex.assert_type([chosen_B, rejected_B, weight_B], float)

    # Rows without a preference are set to 0 first: whatever they hold must not reach the gradient.
    chosen_B, rejected_B = masked.keep(chosen_B, weight_B > 0), masked.keep(rejected_B, weight_B > 0)
    margin_B = chosen_B - rejected_B
    square_B = (chosen_B**2 + rejected_B**2) / 2
    total, count = masked.weighted_mean(-jax.nn.log_sigmoid(margin_B) + score_l2 * square_B, weight_B)
    metrics = {
        "pair_accuracy": masked.weighted_mean((margin_B > 0).astype(margin_B.dtype), weight_B),
        "margin": masked.weighted_mean(margin_B, weight_B),
        "score": masked.weighted_mean((chosen_B + rejected_B) / 2, weight_B),
        "score_square": masked.weighted_mean(square_B, weight_B),
    }
    return masked.Loss(total, count, metrics)
