"""The PPO-Lagrangian update: one jitted, donated call for all epochs and minibatches of the policy and the critics.

    A = (A_r - lambda A_c) / (1 + lambda)            Safe RLHF (arXiv 2310.12773)

Rollout, scoring and the multiplier's step come before; nothing here samples from a model or touches lambda.
"""

from typing import Any, Mapping, NamedTuple

import jax
import jax.numpy as jnp
import optax

from srlhfv_jax.batches import Experience, SupervisedBatch
from srlhfv_jax.config import PPOConfig
from srlhfv_jax.losses import lagrangian, masked, ppo as ppo_losses, sft
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.roles import Place
from srlhfv_jax.rollout import forward
from srlhfv_jax.rollout.generate import Vocabulary
from srlhfv_jax.training import step


class Update(NamedTuple):
    """Static settings of the update."""

    places: Mapping[str, Place]
    own_tower: frozenset[str]
    ppo: PPOConfig
    temperature: float
    ptx_coef: float
    vocabulary: Vocabulary
    microbatches: int
    optimizers: Mapping[str, optax.GradientTransformation]  # trained tree -> optimizer
    trainable: Mapping[str, Any]  # trained tree -> tree of bools, false at frozen leaves
    train_policy: bool = True  # False while the critics warm up


class Minibatch(NamedTuple):
    """What one gradient step reads: some rows of an experience, the combined advantage, and the features of each trained tree."""

    experience: Experience
    advantage_BR: jax.Array
    features: Mapping[str, jax.Array | None]


def update(
    config: VLMConfig,
    params,
    opt_state,
    experience: Experience,
    images,
    lam,
    key,
    ptx: SupervisedBatch | None,
    settings: Update,
):
    """All gradient steps of one iteration.

    Args:
        params: trained tree name -> tree; donated. Gradients reach the policy and the trees that hold the two critic heads.
        lam: float32 scalar, the multiplier.
        key: permutes the rows anew in each epoch.
        ptx: supervised rows, split over the minibatches; None when the coefficient is 0.

    Returns:
        params, opt_state, metrics (each a float32 scalar, the mean over gradient steps). `mismatch` is the mean |log ratio| in
        the first minibatch, where it must be rounding error alone.
    """
    ppo = settings.ppo
    whole = _combined(config, params, experience, images, lam, settings)
    B = whole.advantage_BR.shape[0]
    rows = jax.vmap(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), B))(jnp.arange(ppo.epochs))
    rows = rows.reshape(ppo.epochs * ppo.minibatches, B // ppo.minibatches)
    if ptx is not None:
        ptx = jax.tree.map(lambda x: x.reshape(ppo.minibatches, -1, *x.shape[1:]), ptx)

    def descend(params, opt_state, name: str, loss, minibatch, grads_of_more=None):
        """One optimizer step on one tree, in place in the two dicts."""
        grads, metrics = step.accumulate(
            lambda tree, batch: loss(config, tree, batch, name, settings),
            params[name],
            minibatch,
            settings.microbatches,
            settings.trainable[name],
        )
        if grads_of_more is not None:
            grads = jax.tree.map(lambda g, more: g + settings.ptx_coef * more, grads, grads_of_more)
        params[name], opt_state[name], norm = step.apply_updates(settings.optimizers[name], params[name], opt_state[name], grads)
        return metrics | {"grad_norm": (norm["grad_norm"], jnp.float32(1))}

    def gradient_step(carry, index):
        params, opt_state = dict(carry[0]), dict(carry[1])
        minibatch = jax.tree.map(lambda x: x[rows[index]], whole)
        metrics = {}
        for name in critic_trees(settings.places):
            metrics |= _named(f"{name}_", descend(params, opt_state, name, _critic_loss, minibatch))
        if settings.train_policy:
            name, ptx_grads = settings.places["policy"].tree, None
            if ptx is not None:
                supervised = jax.tree.map(lambda x: x[index % ppo.minibatches], ptx)
                ptx_grads, ptx_metrics = step.accumulate(
                    lambda tree, batch: _ptx_loss(config, tree, batch),
                    params[name],
                    supervised,
                    settings.microbatches,
                    settings.trainable[name],
                )
                metrics |= ptx_metrics
            metrics |= descend(params, opt_state, name, _policy_loss, minibatch, ptx_grads)
        return (params, opt_state), {name: total / count for name, (total, count) in metrics.items() if name != "loss"}

    (params, opt_state), metrics = jax.lax.scan(gradient_step, (dict(params), dict(opt_state)), jnp.arange(rows.shape[0]))
    mismatch = {"mismatch": metrics["log_ratio_abs"][0]} if settings.train_policy else {}
    return params, opt_state, {name: jnp.mean(values) for name, values in metrics.items()} | mismatch


def _combined(config: VLMConfig, params, experience: Experience, images, lam, settings: Update) -> Minibatch:
    """The whole rollout as one batch: both advantage streams combined, the features of each trained tree at hand."""
    mask_BR = experience.rollout.response_mask_BR
    reward_adv_BR, cost_adv_BR = experience.reward_adv_BR, experience.cost_adv_BR
    if settings.ppo.whiten == "scale":
        reward_adv_BR, cost_adv_BR = masked.scale(reward_adv_BR, mask_BR), masked.scale(cost_adv_BR, mask_BR)
    features = {
        name: forward.encode(config, params[name], images) if name in settings.own_tower else experience.rollout.features
        for name in params
    }
    return Minibatch(experience, lagrangian.combine(reward_adv_BR, cost_adv_BR, lam), features)


def critic_trees(places: Mapping[str, Place]) -> list[str]:
    """The trees that hold the two critic heads: one when they share a backbone."""
    return sorted({places["reward_critic"].tree, places["cost_critic"].tree})


def trained_trees(places: Mapping[str, Place]) -> list[str]:
    """Every tree an update changes."""
    return [places["policy"].tree, *critic_trees(places)]


def _named(prefix: str, metrics: dict) -> dict:
    """The critics' gradient norms under names of their own."""
    return {prefix + name if name in ("grad_norm", "loss") else name: value for name, value in metrics.items()}


def _policy_loss(config: VLMConfig, tree, batch: Minibatch, name: str, settings: Update):
    rollout = batch.experience.rollout
    logp_BR, entropy_BR = forward.response_logp(
        config,
        tree,
        rollout,
        batch.features[name],
        temperature=settings.temperature,
        never_V=settings.vocabulary.never_V(config.text.vocab),
    )
    mask_BR = rollout.response_mask_BR
    loss = ppo_losses.policy(
        logp_BR,
        rollout.logp_BR,
        batch.advantage_BR,
        mask_BR,
        clip_ratio=settings.ppo.clip_ratio,
        reduction=settings.ppo.reduction,
    )
    logged = {"policy_loss": (loss.sum, loss.count), "entropy": masked.token_mean(entropy_BR, mask_BR)}
    return loss._replace(metrics=loss.metrics | logged)


def _critic_loss(config: VLMConfig, tree, batch: Minibatch, name: str, settings: Update):
    """The value losses of every critic head on this tree, summed."""
    experience, places = batch.experience, settings.places
    scores = forward.response_scores(config, tree, experience.rollout, batch.features[name])
    streams = {
        "reward_critic": (experience.reward_value_BR, experience.reward_return_BR),
        "cost_critic": (experience.cost_value_BR, experience.cost_return_BR),
    }
    total, count, metrics = jnp.float32(0), jnp.float32(1), {}
    for role, (old_value_BR, return_BR) in streams.items():
        if places[role].tree == name:
            loss = ppo_losses.value(
                scores[places[role].head][:, :-1],
                old_value_BR,
                return_BR,
                experience.rollout.response_mask_BR,
                clip_value=settings.ppo.clip_value,
                reduction=settings.ppo.reduction,
            )
            total, count = total + loss.sum, loss.count
            metrics |= {f"{role}_loss": (loss.sum, loss.count), f"{role}_clip_fraction": loss.metrics["clip_fraction"]}
    return masked.Loss(total, count, metrics)


def _ptx_loss(config: VLMConfig, tree, batch: SupervisedBatch):
    logp_BR, _ = forward.response_logp(config, tree, batch, forward.encode(config, tree, batch.images))
    total, count = sft.sft(logp_BR, batch.response_mask_BR)
    return masked.Loss(total, count, {"ptx_loss": (total, count)})
