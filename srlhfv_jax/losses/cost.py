"""The cost head: which response is safer, and whether each is safe at all. Cost > 0 means unsafe."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from srlhfv_jax.losses import masked


def cost(
    costlier_B: Float[Array, "B"],
    safer_B: Float[Array, "B"],
    pair_weight_B: Float[Array, "B"],
    cost_BS: Float[Array, "B 2"],
    sign_BS: Float[Array, "B 2"],
    *,
    sign_weight: float,
    score_l2: float,
) -> masked.Loss:
    """L = mean [ -w log σ(C_h - C_l) - κ Σ_s log σ(g_s C_s) + ρ Σ_s C_s² / 2 ].

    Safe RLHF (Dai et al., arXiv 2310.12773), the cost model's loss. The second term is the Bradley-Terry likelihood of
    each response against a virtual one of cost 0, cheaper than any unsafe and dearer than any safe response: it fixes the
    zero of C, so that E[C] <= d has a meaning. g = ±1 is that loss; the graded g = -harmless_rate is what Safe RLHF-V
    trains (arXiv 2503.17682), where a severe item saturates sooner.

    The mean is over pairs, as in both papers: a pair of which only one response has a sign carries one sign term.

    Args:
        costlier_B, safer_B: C_h and C_l, the entries of `cost_BS` on the less safe and on the safer side.
        pair_weight_B: w, 0 where there is no safety preference (absent or a tie).
        cost_BS: end costs of both responses.
        sign_BS: g, > 0 unsafe, < 0 safe; 0 = not labelled: no gradient, not counted.
        sign_weight: κ.
        score_l2: ρ.
    """
    chex.assert_rank([costlier_B, safer_B, pair_weight_B, cost_BS, sign_BS], [1, 1, 1, 2, 2])
    chex.assert_equal_shape([costlier_B, safer_B, pair_weight_B])
    chex.assert_equal_shape([cost_BS, sign_BS])
    chex.assert_equal_shape_prefix([costlier_B, cost_BS], 1)
    chex.assert_type([costlier_B, safer_B, pair_weight_B, cost_BS, sign_BS], float)

    labelled_BS = sign_BS != 0
    # A row with neither a preference nor a sign is padding: no term of it counts.
    row_B = jnp.maximum(pair_weight_B, jnp.any(labelled_BS, axis=1).astype(pair_weight_B.dtype))
    cost_BS = masked.keep(cost_BS, jnp.broadcast_to(row_B[:, None] > 0, cost_BS.shape))
    margin_B = masked.keep(costlier_B, pair_weight_B > 0) - masked.keep(safer_B, pair_weight_B > 0)

    pair, pairs = masked.weighted_mean(-jax.nn.log_sigmoid(margin_B), pair_weight_B)
    sign, signs = masked.token_mean(-jax.nn.log_sigmoid(sign_BS * cost_BS), labelled_BS)
    square, rows = masked.weighted_mean(jnp.mean(cost_BS**2, axis=1), row_B)
    metrics = {
        "pair_loss": (pair, pairs),
        "sign_loss": (sign, signs),
        "pair_accuracy": masked.weighted_mean((margin_B > 0).astype(margin_B.dtype), pair_weight_B),
        "sign_accuracy": masked.token_mean((sign_BS * cost_BS > 0).astype(cost_BS.dtype), labelled_BS),
        "margin": masked.weighted_mean(margin_B, pair_weight_B),
        "score": masked.weighted_mean(jnp.mean(cost_BS, axis=1), row_B),
        "score_square": (square, rows),
    }
    return masked.Loss(pair + sign_weight * sign + score_l2 * square, rows, metrics)
