"""Advantages: GAE of one critic's values, or of each answer in its group; both streams as one; how well critics explain returns.

    A = (A_r - lambda A_c) / (1 + lambda)            Safe RLHF (arXiv 2310.12773)

Scoring makes those of groups, and the streams of critics where an iteration has several gradient steps; the update where it has one.
"""

from typing import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from srlhfv_jax.batches import Experience, GroupAdvantages, Stream
from srlhfv_jax.config import PPOConfig
from srlhfv_jax.losses import gae, groups, lagrangian, masked, ppo as ppo_losses
from srlhfv_jax.ppo_lag.roles import CRITICS


def stream(token_BR: Float[Array, "B R"], value_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"], ppo: PPOConfig) -> Stream:
    """Advantages and returns of one critic's values; nothing is differentiated through them."""
    value_BR = jnp.where(mask_BR, jax.lax.stop_gradient(value_BR), 0.0)
    return Stream(value_BR, *gae.gae(token_BR, value_BR, mask_BR, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda))


def combine(
    streams: Mapping[str, Stream], mask_BR: Bool[Array, "B R"], lam: Float[Array, ""], ppo: PPOConfig
) -> Float[Array, "B R"]:
    """The combined advantage of a whole rollout; its two streams are scaled first, as `ppo.whiten` says."""
    reward_BR, cost_BR = (streams[role].adv_BR for role in CRITICS)
    return _mixed(reward_BR, cost_BR, mask_BR, lam, ppo)


def of_cost(experience: Experience) -> Float[Array, "B R"]:
    """The advantage of the cost stream alone, in its own units."""
    mask_BR = experience.rollout.response_mask_BR
    if experience.groups is not None:
        return jnp.where(mask_BR, experience.groups.cost_B[:, None], 0.0)
    return experience.streams["cost_critic"].adv_BR


def in_groups(reward_B: Float[Array, "B"], cost_B: Float[Array, "B"], kl_B: Float[Array, "B"], ppo: PPOConfig) -> GroupAdvantages:
    """The advantage of each answer in the group of its prompt, by its end scores; of its KL without a division."""
    scores = (groups.advantages(x_B, ppo.group_size, kind=ppo.advantage, scale=ppo.group_scale) for x_B in (reward_B, cost_B))
    return GroupAdvantages(*scores, groups.advantages(kl_B, ppo.group_size, kind=ppo.advantage, scale="none"))


def combine_groups(
    group: GroupAdvantages, mask_BR: Bool[Array, "B R"], lam: Float[Array, ""], kl_coef: Float[Array, ""] | float, ppo: PPOConfig
) -> Float[Array, "B R"]:
    """A = (Z_r - lambda Z_c) / (1 + lambda) - beta Z_kl: one advantage for all tokens of an answer.

    The KL is no part of the scores that a group is divided by: where all answers are safe, Z_c would be its noise, as large as any cost.

    Args:
        kl_coef: beta; 0 where the KL is a loss.
    """
    reward_BR, cost_BR, kl_BR = (jnp.where(mask_BR, adv_B[:, None], 0.0) for adv_B in group)
    return _mixed(reward_BR, cost_BR, mask_BR, lam, ppo) - kl_coef * kl_BR


def group_metrics(group: GroupAdvantages, size: int) -> dict[str, Float[Array, ""]]:
    """Shares of groups whose answers are all worth the same: by both scores, and by each; the correlation of both advantages."""
    everywhere = jnp.ones((len(group.cost_B), 1), bool)
    by = {
        "reward_equal_groups": [group.reward_B],
        "cost_equal_groups": [group.cost_B],
        "equal_groups": [group.reward_B, group.cost_B],
    }
    shares = {name: jnp.mean(groups.is_degenerate(scores, size), dtype=jnp.float32) for name, scores in by.items()}
    return shares | {"advantage_correlation": _correlation(group.reward_B[:, None], group.cost_B[:, None], everywhere)}


def count_equal_groups(experience: Experience, *, size: int) -> Int[Array, ""]:
    """Groups that teach nothing."""
    return jnp.sum(_equal(experience, size), dtype=jnp.int32)


def replace_groups(experience: Experience, other: Experience, *, size: int) -> Experience:
    """An experience with another one's groups where its own teach nothing. Both are of the same prompts and pictures."""
    equal_B = jnp.repeat(_equal(experience, size), size)
    features = experience.rollout.features

    def choose(old: Array, new: Array) -> Array:
        return jnp.where(equal_B.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    bare = [one._replace(rollout=one.rollout._replace(features=None)) for one in (experience, other)]
    chosen = jax.tree.map(choose, *bare)
    return chosen._replace(rollout=chosen.rollout._replace(features=features))


def _equal(experience: Experience, size: int) -> Bool[Array, "N"]:
    """Groups whose answers are all worth the same, in reward and in cost."""
    return groups.is_degenerate([experience.groups.reward_B, experience.groups.cost_B], size)


def _mixed(reward_BR, cost_BR, mask_BR, lam, ppo: PPOConfig) -> Float[Array, "B R"]:
    if ppo.whiten != "none":
        if ppo.whiten == "reward_mean":
            total, count = masked.token_mean(reward_BR, mask_BR)
            reward_BR = masked.keep(reward_BR - total / jnp.maximum(count, 1.0), mask_BR)
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
