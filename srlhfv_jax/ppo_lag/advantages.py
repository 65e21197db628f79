"""Advantages: GAE of one critic's values, or of each answer in its group; all streams as one; how well critics explain returns.

    A = (A_r - sum_k lambda_k A_k) / (1 + sum_k lambda_k)            Safe RLHF (arXiv 2310.12773), with a sum over constraints

Scoring makes those of groups, and the streams of critics where an iteration has several gradient steps; the update where it has one.
"""

from collections.abc import Sequence
from typing import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from srlhfv_jax.batches import Experience, GroupAdvantages, Stream
from srlhfv_jax.config import PPOConfig
from srlhfv_jax.config.constraints import FIRST, metric
from srlhfv_jax.losses import gae, groups, lagrangian, masked, ppo as ppo_losses
from srlhfv_jax.ppo_lag.roles import SCORES, critic


def stream(token_BR: Float[Array, "B R"], value_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"], ppo: PPOConfig) -> Stream:
    """Advantages and returns of one critic's values; nothing is differentiated through them."""
    value_BR = jnp.where(mask_BR, jax.lax.stop_gradient(value_BR), 0.0)
    return Stream(value_BR, *gae.gae(token_BR, value_BR, mask_BR, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda))


def combine(
    streams: Mapping[str, Stream], mask_BR: Bool[Array, "B R"], lams: Mapping[str, Float[Array, ""]], ppo: PPOConfig
) -> Float[Array, "B R"]:
    """The combined advantage of a whole rollout; its streams are scaled first, as `ppo.whiten` says.

    Args:
        streams: by critic role.
        lams: by constraint.
    """
    costs = {key: streams[critic(key)].adv_BR for key in lams}
    return _mixed(streams[critic("reward")].adv_BR, costs, mask_BR, lams, ppo)


def of_costs(experience: Experience) -> dict[str, Float[Array, "B R"]]:
    """Constraint -> the advantage of its cost alone, in its own units."""
    mask_BR = experience.rollout.response_mask_BR
    if experience.groups is not None:
        return {key: jnp.where(mask_BR, adv_B[:, None], 0.0) for key, adv_B in experience.groups.costs_B.items()}
    return {key: experience.streams[critic(key)].adv_BR for key in experience.costs_B}


def in_groups(
    reward_B: Float[Array, "B"], costs_B: Mapping[str, Float[Array, "B"]], kl_B: Float[Array, "B"], ppo: PPOConfig
) -> GroupAdvantages:
    """The advantage of each answer in the group of its prompt, by its end scores; of its KL without a division."""

    def advantages(x_B: Float[Array, "B"], scale: str) -> Float[Array, "B"]:
        return groups.advantages(x_B, ppo.group_size, kind=ppo.advantage, scale=scale)

    costs = {key: advantages(cost_B, ppo.group_scale) for key, cost_B in costs_B.items()}
    return GroupAdvantages(advantages(reward_B, ppo.group_scale), costs, advantages(kl_B, "none"))


def combine_groups(
    group: GroupAdvantages,
    mask_BR: Bool[Array, "B R"],
    lams: Mapping[str, Float[Array, ""]],
    kl_coef: Float[Array, ""] | float,
    ppo: PPOConfig,
) -> Float[Array, "B R"]:
    """A = (Z_r - sum_k lambda_k Z_k) / (1 + sum_k lambda_k) - beta Z_kl: one advantage for all tokens of an answer.

    The KL is no part of the scores that a group is divided by: where all answers are safe, Z_k would be its noise, as large as any cost.

    Args:
        kl_coef: beta; 0 where the KL is a loss.
    """
    reward_BR, costs_BR, kl_BR = jax.tree.map(lambda adv_B: jnp.where(mask_BR, adv_B[:, None], 0.0), tuple(group))
    return _mixed(reward_BR, costs_BR, mask_BR, lams, ppo) - kl_coef * kl_BR


def group_metrics(group: GroupAdvantages, size: int) -> dict[str, Float[Array, ""]]:
    """Shares of groups whose answers are all worth the same: by all scores, and by each; the correlation of reward and first cost."""
    everywhere = jnp.ones((len(group.reward_B), 1), bool)
    by = {"reward_equal_groups": [group.reward_B]}
    by |= {_named(key, "equal_groups"): [cost_B] for key, cost_B in group.costs_B.items()}
    by["equal_groups"] = [group.reward_B, *group.costs_B.values()]
    shares = {name: jnp.mean(groups.is_degenerate(scores, size), dtype=jnp.float32) for name, scores in by.items()}
    first_B = group.costs_B[FIRST]
    return shares | {"advantage_correlation": _correlation(group.reward_B[:, None], first_B[:, None], everywhere)}


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
    """Groups whose answers are all worth the same, in reward and in every cost."""
    return groups.is_degenerate([experience.groups.reward_B, *experience.groups.costs_B.values()], size)


def _mixed(reward_BR, costs_BR, mask_BR, lams, ppo: PPOConfig) -> Float[Array, "B R"]:
    if ppo.whiten != "none":
        if ppo.whiten == "reward_mean":
            total, count = masked.token_mean(reward_BR, mask_BR)
            reward_BR = masked.keep(reward_BR - total / jnp.maximum(count, 1.0), mask_BR)
        reward_BR = masked.scale(reward_BR, mask_BR)
        costs_BR = {key: masked.scale(cost_BR, mask_BR) for key, cost_BR in costs_BR.items()}
    return lagrangian.combine(reward_BR, costs_BR, lams)


def stream_metrics(streams: Mapping[str, Stream], mask_BR: Bool[Array, "B R"]) -> dict[str, masked.Mean]:
    """Explained variance of each critic, and the correlation of reward and first cost: near +1 what helps also costs."""
    values = {
        _named(role.removesuffix("_critic"), "explained_variance"): ppo_losses.explained_variance(
            one.value_BR, one.return_BR, mask_BR
        )
        for role, one in streams.items()
    }
    reward, cost = streams[critic("reward")], streams[critic(FIRST)]
    values["advantage_correlation"] = _correlation(reward.adv_BR, cost.adv_BR, mask_BR)
    return {name: (value, jnp.float32(1)) for name, value in values.items()}


def explained_variances(scores: Sequence[str]) -> list[str]:
    """The metrics that tell how well each critic explains its returns."""
    return [_named(score, "explained_variance") for score in scores]


def _correlation(x_BR: Float[Array, "B R"], y_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"]) -> Float[Array, ""]:
    x_BR, y_BR = masked.scale(x_BR, mask_BR), masked.scale(y_BR, mask_BR)
    count = jnp.maximum(jnp.sum(mask_BR), 1)
    x_mean, y_mean = jnp.sum(x_BR) / count, jnp.sum(y_BR) / count
    return jnp.sum(x_BR * y_BR) / count - x_mean * y_mean


def _named(score: str, number: str) -> str:
    """A number of a score, as it is logged: those of the first constraint begin with "cost_"."""
    return f"{score}_{number}" if score in SCORES else metric(score, number)
