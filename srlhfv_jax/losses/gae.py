"""Generalised advantage estimation (Schulman et al., arXiv 1506.02438). Nothing is whitened here."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from srlhfv_jax.losses import masked


def gae(
    reward_BR: Float[Array, "B R"],
    value_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """Advantages and returns, equations 11 and 16 of the paper, for t = 0 .. n-1 with V_n = A_n = 0:

        δ_t = r_t + γ V_{t+1} - V_t
        A_t = δ_t + γ λ A_{t+1}
        Ret_t = A_t + V_t

    n is the row's number of true positions: a response is an episode that ends at its last token, so nothing is bootstrapped and
    nothing off the mask, however long the padding, reaches a true position. Both results are 0 off the mask, and float32.
    """
    chex.assert_rank([reward_BR, value_BR, mask_BR], 2)
    chex.assert_equal_shape([reward_BR, value_BR, mask_BR])
    chex.assert_type([reward_BR, value_BR, mask_BR], [float, float, bool])

    reward_BR, value_BR = masked.keep(reward_BR, mask_BR), masked.keep(value_BR, mask_BR)
    next_value_BR = jnp.pad(value_BR[:, 1:], ((0, 0), (0, 1)))
    delta_BR = masked.keep(reward_BR + gamma * next_value_BR - value_BR, mask_BR)

    def back(adv_B: Float[Array, "B"], delta_B: Float[Array, "B"]) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        adv_B = delta_B + gamma * gae_lambda * adv_B
        return adv_B, adv_B

    _, adv_RB = jax.lax.scan(back, jnp.zeros_like(delta_BR[:, 0]), delta_BR.T, reverse=True)
    adv_BR = adv_RB.T
    return adv_BR, adv_BR + value_BR
