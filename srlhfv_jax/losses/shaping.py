"""From end scores to a number per token: the KL penalty enters both streams, with opposite signs.

With r_t = -β kl_t + R and c_t = +β kl_t + C the KL part of A = (A_r - λ A_c) / (1 + λ) is (-β - λβ) / (1 + λ) = -β: the leash to
the reference has the same strength for every multiplier. In the reward alone it would fade by 1 / (1 + λ), just when λ is high.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from srlhfv_jax.losses import masked


def token_rewards(
    kl_BR: Float[Array, "B R"],
    end_score_B: Float[Array, "B"],
    mask_BR: Bool[Array, "B R"],
    *,
    kl_coef: float,
    clip_score: float,
) -> Float[Array, "B R"]:
    """r_t = -β kl_t + 1[t = end] clip(R, ±clip_score), kl_t = log pi_old(y_t) - log pi_ref(y_t) (the k1 estimator).

    Safe RLHF (arXiv 2310.12773), section on RL fine-tuning. Only the score is clipped, never the KL. 0 off the mask.
    """
    _check(kl_BR, end_score_B, mask_BR)
    return -kl_coef * masked.keep(kl_BR, mask_BR) + _at_end(end_score_B, mask_BR, clip_score)


def token_costs(
    kl_BR: Float[Array, "B R"],
    end_cost_B: Float[Array, "B"],
    mask_BR: Bool[Array, "B R"],
    *,
    kl_coef: float,
    clip_score: float,
) -> Float[Array, "B R"]:
    """c_t = +β kl_t + 1[t = end] clip(C, ±clip_score): a cost is to be lowered, so the penalty has the opposite sign."""
    _check(kl_BR, end_cost_B, mask_BR)
    return kl_coef * masked.keep(kl_BR, mask_BR) + _at_end(end_cost_B, mask_BR, clip_score)


def overlong(mask_BR: Bool[Array, "B R"], *, last: int) -> Float[Array, "B"]:
    """The share of the `last` tokens before the longest length R that an answer fills.

    The soft punishment of DAPO (arXiv 2503.14476, equation 13).
    """
    length_B = jnp.sum(mask_BR, axis=1, dtype=jnp.float32)
    return jnp.clip((length_B - (mask_BR.shape[1] - last)) / last, 0.0, 1.0)


def _at_end(score_B: Float[Array, "B"], mask_BR: Bool[Array, "B R"], clip_score: float) -> Float[Array, "B R"]:
    """The clipped score at each row's last true position; a row without tokens gets none."""
    later_BR = jnp.cumsum(mask_BR[:, ::-1].astype(jnp.int32), axis=1)[:, ::-1]  # true positions from t on
    end_BR = mask_BR & (later_BR == 1)
    score_BR = jnp.broadcast_to(jnp.clip(score_B, -clip_score, clip_score)[:, None], mask_BR.shape)
    return masked.keep(score_BR, end_BR)


def _check(kl_BR: Float[Array, "B R"], score_B: Float[Array, "B"], mask_BR: Bool[Array, "B R"]) -> None:
    chex.assert_rank([kl_BR, score_B, mask_BR], [2, 1, 2])
    chex.assert_equal_shape([kl_BR, mask_BR])
    chex.assert_equal_shape_prefix([kl_BR, score_B], 1)
    chex.assert_type([kl_BR, score_B, mask_BR], [float, float, bool])
