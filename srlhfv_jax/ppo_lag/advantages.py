"""Advantages: GAE of one critic's values, both streams as one, and how well the critics explain their returns.

    A = (A_r - lambda A_c) / (1 + lambda)            Safe RLHF (arXiv 2310.12773)

Scoring makes the streams where an iteration has several gradient steps, the update where it has one.
"""

from typing import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from srlhfv_jax.batches import Stream
from srlhfv_jax.config import PPOConfig
from srlhfv_jax.losses import gae, lagrangian, masked, ppo as ppo_losses
from srlhfv_jax.ppo_lag.roles import CRITICS


def stream(token_BR: Float[Array, "B R"], value_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"], ppo: PPOConfig) -> Stream:
    """Advantages and returns of one critic's values; nothing is differentiated through them."""
    value_BR = jnp.where(mask_BR, jax.lax.stop_gradient(value_BR), 0.0)
    return Stream(value_BR, *gae.gae(token_BR, value_BR, mask_BR, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda))


def combine(
    streams: Mapping[str, Stream], mask_BR: Bool[Array, "B R"], lam: Float[Array, ""], ppo: PPOConfig
) -> Float[Array, "B R"]:
    """The combined advantage of a whole rollout; its two streams are scaled first if `ppo.whiten` is "scale"."""
    reward_BR, cost_BR = (streams[role].adv_BR for role in CRITICS)
    if ppo.whiten == "scale":
        reward_BR, cost_BR = masked.scale(reward_BR, mask_BR), masked.scale(cost_BR, mask_BR)
    return lagrangian.combine(reward_BR, cost_BR, lam)


def stream_metrics(streams: Mapping[str, Stream], mask_BR: Bool[Array, "B R"]) -> dict[str, masked.Mean]:
    """Explained variance of each critic, and the correlation of the advantages: near +1 what helps also costs."""
    reward, cost = (streams[role] for role in CRITICS)
    values = {
        "reward_explained_variance": ppo_losses.explained_variance(reward.value_BR, reward.return_BR, mask_BR),
        "cost_explained_variance": ppo_losses.explained_variance(cost.value_BR, cost.return_BR, mask_BR),
        "advantage_correlation": _correlation(reward.adv_BR, cost.adv_BR, mask_BR),
    }
    return {name: (value, jnp.float32(1)) for name, value in values.items()}


def _correlation(x_BR: Float[Array, "B R"], y_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"]) -> Float[Array, ""]:
    x_BR, y_BR = masked.scale(x_BR, mask_BR), masked.scale(y_BR, mask_BR)
    count = jnp.maximum(jnp.sum(mask_BR), 1)
    x_mean, y_mean = jnp.sum(x_BR) / count, jnp.sum(y_BR) / count
    return jnp.sum(x_BR * y_BR) / count - x_mean * y_mean
