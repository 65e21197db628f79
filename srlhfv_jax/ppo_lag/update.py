"""The PPO-Lagrangian update: every gradient step of one iteration, in one jitted and donated call.

Read `update` (epochs and minibatches), `gradient_step` (critics, advantage, policy), then the losses below it. Sampling, scoring and
the multiplier's step come before this file; nothing here samples from a model or changes lambda.
"""

import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Mapping, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from srlhfv_jax.batches import Experience, Features, Images, SupervisedBatch
from srlhfv_jax.config.constraints import metric
from srlhfv_jax.losses import masked, ppo as ppo_losses, sft
from srlhfv_jax.models import sequences
from srlhfv_jax.models.trees import with_backbone
from srlhfv_jax.parallel import order
from srlhfv_jax.parallel.microbatches import over_rows, repeat, split
from srlhfv_jax.ppo_lag import advantages, minibatches
from srlhfv_jax.ppo_lag.roles import CRITICS, critic, critic_trees, critics
from srlhfv_jax.ppo_lag.static import Static
from srlhfv_jax.training import optimizer as optimizers, step, units


class Training(NamedTuple):
    """Optimizers of the trained trees; static."""

    optimizers: Mapping[str, optax.GradientTransformation]  # trained tree -> optimizer
    trainable: Mapping[str, Any]  # trained tree -> tree of bools, false at frozen leaves
    train_policy: bool = True  # False while the critics warm up
    rates: Mapping[str, Callable[[Array], Array]] = MappingProxyType({})  # trained tree -> learning rate after so many steps
    still: units.Masks = MappingProxyType({})  # entries of the policy that do not move


class Multipliers(NamedTuple):
    """The numbers of an iteration that weigh its losses."""

    lams: Mapping[str, Float[Array, ""]]  # constraint -> lambda
    kl_coef: Float[Array, ""] | None = None  # beta where it is adapted; None: that of the settings
    excess: Mapping[str, Float[Array, ""]] | None = (
        None  # constraint -> J - d, of those with a penalty in the policy's loss (p3o)
    )


class Minibatch(NamedTuple):
    """The rows of one gradient step."""

    experience: Experience
    advantage_BR: Float[Array, "B R"] | None  # None: made in the step, from the values that the critic losses compute
    contexts: Mapping[str, sequences.Context]  # trained tree -> what it needs of the prompts: image features, or a prefix
    cost_adv_BR: Mapping[str, Float[Array, "B R"]] | None = (
        None  # constraint -> its cost's, where there are penalties, and as above
    )


def update(
    static: Static,
    training: Training,
    params: dict[str, dict],
    opt_state: dict[str, Any],
    experience: Experience,
    images: Images | None,
    multipliers: Multipliers,
    key: jax.Array,
    ptx: SupervisedBatch | None,
    base: dict | None,
) -> tuple[dict[str, dict], dict[str, Any], dict[str, Float[Array, ""]]]:
    """All gradient steps of one iteration: `ppo.epochs` passes over the rollout, each in `ppo.minibatches` steps.

    Args:
        params: trained tree name -> tree; donated. The policy, and the trees that hold the critics' heads.
        multipliers: float32.
        key: deals the rows anew in each epoch (minibatches.py).
        ptx: supervised rows, split over the minibatches; None when the coefficient is 0.
        base: the frozen backbone under trees that hold adapters.

    Returns:
        params, opt_state, metrics (each a float32 scalar, the mean over gradient steps). `mismatch` is the mean |log ratio| in
        the first minibatch, where it must be rounding error alone.
    """
    lams = multipliers.lams
    ppo, streams, mask_BR = static.settings.ppo, experience.streams, experience.rollout.response_mask_BR
    if experience.groups is not None:
        kl_coef = 0.0 if ppo.kl_in == "loss" else _kl_coef(static, multipliers)
        advantage_BR = advantages.combine_groups(experience.groups, mask_BR, lams, kl_coef, ppo)
    else:
        advantage_BR = None if streams is None else advantages.combine(streams, mask_BR, lams, ppo)
    features = _features(static, params, base, experience, repeat(images, ppo.group_size) if static.own_towers else None)
    cost_adv_BR = advantages.of_costs(experience) if advantage_BR is not None and multipliers.excess else None
    rollout = Minibatch(experience, advantage_BR, features, cost_adv_BR)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(ppo.epochs))
    rows = jax.vmap(lambda key: minibatches.draw(key, len(mask_BR), ppo.minibatches))(keys)
    rows = rows.reshape(-1, *rows.shape[2:])
    ptx = None if ptx is None else split(ptx, ppo.minibatches)

    def body(state, index):
        ptx_rows = jax.tree.map(lambda x: x[index % ppo.minibatches], ptx)
        return gradient_step(static, training, *state, minibatches.take(rollout, rows[index]), ptx_rows, multipliers, base)

    rates = {f"{name}_learning_rate": rate(optimizers.steps_taken(opt_state[name])) for name, rate in training.rates.items()}
    limit = ppo.target_kl if training.train_policy else 0.0
    (params, opt_state), metrics = scan(body, (dict(params), dict(opt_state)), len(rows), limit)
    mismatch = {"mismatch": metrics["log_ratio_abs"][0]} if training.train_policy else {}
    metrics = _over_steps(metrics) | mismatch | rates
    if streams is not None:
        metrics |= _means(advantages.stream_metrics(streams, mask_BR))
    return params, opt_state, metrics


def scan(body, state, steps: int, target_kl: float):
    """(state, the metrics of each step). Above 0, the steps after one whose approx_kl is above `target_kl` change nothing; `taken`
    says which those are not."""
    if not target_kl:
        return jax.lax.scan(body, state, jnp.arange(steps))

    def until(carry, index):
        state, goes_on = carry
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(body, state, index)[1])
        state, metrics = jax.lax.cond(goes_on, lambda: body(state, index), lambda: (state, nothing))
        return (state, goes_on & (metrics["approx_kl"] <= target_kl)), metrics | {"taken": goes_on}

    (state, _), metrics = jax.lax.scan(until, (state, jnp.bool_(True)), jnp.arange(steps))
    return state, metrics


def _over_steps(metrics: dict[str, Float[Array, "steps"]]) -> dict[str, Float[Array, ""]]:
    """The mean of each number over the steps that were taken, and where not all need be, how many were."""
    if "taken" not in metrics:
        return {name: jnp.mean(values) for name, values in metrics.items()}
    taken = metrics["taken"].astype(jnp.float32)
    count = jnp.sum(taken)
    means = {name: jnp.sum(values * taken) / count for name, values in metrics.items() if name != "taken"}
    return means | {"steps_taken": count}


def gradient_step(
    static: Static, training: Training, params, opt_state, minibatch: Minibatch, ptx, multipliers: Multipliers, base
):
    """One optimizer step on each trained tree. Returns ((params, opt_state), metrics)."""
    params, opt_state, mask_BR = dict(params), dict(opt_state), minibatch.experience.rollout.response_mask_BR
    minibatch = _with_shared_prefix(static, base, minibatch)
    gradient = functools.partial(_gradient, static, training, base)

    # 1. Critics: one step on each tree that holds a critic head.
    metrics, streams = {}, {}
    for name in critic_trees(static.places):
        grads, logged, tree_streams = gradient(_critic_loss, name, params[name], minibatch)
        params[name], opt_state[name], norm = step.apply_updates(training.optimizers[name], params[name], opt_state[name], grads)
        logged |= {f"{name}_loss": logged["loss"], f"{name}_grad_norm": (norm["grad_norm"], jnp.float32(1))}
        # The next tree waits for this one's new parameters, so that this one's temporaries are freed first.
        minibatch, logged, params, opt_state = order.barrier_on_cpu((minibatch, logged, params, opt_state))
        metrics, streams = metrics | logged, streams | tree_streams

    # 2. Advantage: known since scoring, or made of the values that step 1 has just computed.
    if minibatch.advantage_BR is None:
        minibatch = minibatch._replace(advantage_BR=advantages.combine(streams, mask_BR, multipliers.lams, static.settings.ppo))
        if multipliers.excess:
            minibatch = minibatch._replace(cost_adv_BR={key: streams[critic(key)].adv_BR for key in multipliers.excess})
        metrics |= advantages.stream_metrics(streams, mask_BR)

    # 3. Policy: the clipped objective, and with PTX the supervised loss beside it.
    if training.train_policy:
        name = static.places["policy"].tree
        grads, logged, _ = gradient(functools.partial(_policy_loss, multipliers), name, params[name], minibatch)
        if ptx is not None:
            ptx_grads, ptx_logged, _ = gradient(_ptx_loss, name, params[name], ptx)
            grads = jax.tree.map(lambda g, p: g + static.settings.ptx.coef * p, grads, ptx_grads)
            logged |= ptx_logged
        params[name], opt_state[name], norm = step.apply_updates(
            training.optimizers[name], params[name], opt_state[name], grads, training.still
        )
        metrics |= logged | {"grad_norm": (norm["grad_norm"], jnp.float32(1))}
    return (params, opt_state), _means({name: mean for name, mean in metrics.items() if name != "loss"})


def _kl_coef(static: Static, multipliers: Multipliers) -> Float[Array, ""] | float:
    return static.settings.ppo.kl_coef if multipliers.kl_coef is None else multipliers.kl_coef


def _gradient(static: Static, training: Training, base, loss, name: str, tree: dict, batch):
    """(gradient, metrics, rows) of `loss` by the trainable leaves of one tree, summed over microbatches."""
    return step.accumulate(
        lambda leaves, part: loss(static, name, with_backbone(base, leaves), part),
        tree,
        batch,
        static.settings.microbatches,
        training.trainable[name],
    )


def _means(metrics: dict[str, masked.Mean]) -> dict[str, Float[Array, ""]]:
    return {name: total / count for name, (total, count) in metrics.items()}


def _features(static: Static, params, base, experience: Experience, images) -> dict[str, Features | None]:
    """Image features for each trained tree: the rollout's, or of its own tower."""
    own = {name: with_backbone(base, params[name]) for name in params if name in static.own_towers}
    shared = experience.rollout.features
    return {name: sequences.encode(static.model, own[name], images) if name in own else shared for name in params}


def _with_shared_prefix(static: Static, base, minibatch: Minibatch) -> Minibatch:
    """With activated adapters every tree reads one prompt prefix, computed by the frozen backbone; else its image features."""
    if not static.model.activation:
        return minibatch
    prefix = functools.partial(sequences.prefix, static.model, {"backbone": base})
    rollout = minibatch.experience.rollout
    shared = over_rows(lambda rows: prefix(rows, rows.features), rollout, static.settings.microbatches)
    return minibatch._replace(contexts=dict.fromkeys(minibatch.contexts, shared))


def _policy_loss(multipliers: Multipliers, static: Static, name: str, tree: dict, batch: Minibatch) -> masked.Loss:
    settings, rollout = static.settings, batch.experience.rollout
    never_V, mask_BR = static.vocabulary.never_V(static.model.text.vocab), rollout.response_mask_BR
    logp_BR, entropy_BR = sequences.response_logp(
        static.model, tree, rollout, batch.contexts[name], temperature=settings.rollout.temperature, never_V=never_V
    )
    loss = ppo_losses.policy(
        logp_BR,
        rollout.logp_BR,
        batch.advantage_BR,
        mask_BR,
        clip_ratio=settings.ppo.clip_ratio,
        reduction=settings.ppo.reduction,
        clip_ratio_high=settings.ppo.clip_ratio_high,
        dual_clip=settings.ppo.dual_clip,
        objective=settings.ppo.objective,
        weight_BR=batch.experience.weight_BR,
    )
    logged = {"policy_loss": (loss.sum, loss.count), "entropy": masked.token_mean(entropy_BR, mask_BR)}
    if settings.ppo.entropy_coef:
        bonus = masked.reduce(entropy_BR, mask_BR, settings.ppo.reduction)
        loss = loss._replace(sum=loss.sum - settings.ppo.entropy_coef * bonus[0])
    if settings.ppo.kl_in == "loss":
        kl = ppo_losses.kl(logp_BR, batch.experience.ref_logp_BR, mask_BR, reduction=settings.ppo.reduction)
        loss = loss._replace(sum=loss.sum + _kl_coef(static, multipliers) * kl[0])
        logged["kl_loss"] = kl
    for key, excess in (multipliers.excess or {}).items():
        over = ppo_losses.penalty(
            logp_BR, rollout.logp_BR, batch.cost_adv_BR[key], mask_BR, excess, clip_ratio=settings.ppo.clip_ratio
        )
        loss = loss._replace(sum=loss.sum + settings.costs[key].settings.max * over * loss.count)
        logged[metric(key, "penalty")] = over, jnp.float32(1)
    return loss._replace(metrics=loss.metrics | logged)


def _critic_loss(static: Static, name: str, tree: dict, batch: Minibatch) -> masked.Loss:
    """The value losses of every critic head on this tree, summed; beside them the streams that were made of its values."""
    experience, places, ppo = batch.experience, static.places, static.settings.ppo
    mask_BR = experience.rollout.response_mask_BR
    scores = sequences.response_scores(static.model, tree, experience.rollout, batch.contexts[name])
    total, count, metrics, streams = jnp.float32(0), jnp.float32(1), {}, {}
    for role in (role for role in critics(places) if places[role].tree == name):
        value_BR = scores[places[role].head][:, :-1]
        if experience.streams is None:
            stream = streams[role] = advantages.stream(experience.token_BR[role], value_BR, mask_BR, ppo)
        else:
            stream = experience.streams[role]
        loss = ppo_losses.value(
            value_BR, stream.value_BR, stream.return_BR, mask_BR, clip_value=ppo.clip_value, reduction=ppo.reduction
        )
        total, count = total + loss.sum, loss.count
        named = role if role in CRITICS else f"{role.removesuffix('_critic')}.critic"
        metrics |= {f"{named}_loss": (loss.sum, loss.count), f"{named}_clip_fraction": loss.metrics["clip_fraction"]}
    return masked.Loss(total, count, metrics, streams)


def _ptx_loss(static: Static, name: str, tree: dict, batch: SupervisedBatch) -> masked.Loss:
    logp_BR, _ = sequences.response_logp(static.model, tree, batch, sequences.encode(static.model, tree, batch.images))
    total, count = sft.sft(logp_BR, batch.response_mask_BR)
    return masked.Loss(total, count, {"ptx_loss": (total, count)})
