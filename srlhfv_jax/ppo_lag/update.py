"""The PPO-Lagrangian update: one jitted, donated call for all epochs and minibatches of the policy and the critics.

    A = (A_r - lambda A_c) / (1 + lambda)            Safe RLHF (arXiv 2310.12773)

Rollout, scoring and the multiplier's step come before; nothing here samples from a model or touches lambda.
"""

import functools
from typing import Any, Mapping, NamedTuple

import jax
import jax.numpy as jnp
import optax

from srlhfv_jax.batches import Experience, Features, Stream, SupervisedBatch
from srlhfv_jax.config import PPOConfig
from srlhfv_jax.losses import lagrangian, masked, ppo as ppo_losses, sft
from srlhfv_jax.models import sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.trees import with_backbone
from srlhfv_jax.parallel import microbatches as parts, order
from srlhfv_jax.ppo_lag import experience as scoring, minibatches
from srlhfv_jax.ppo_lag.roles import Place
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
    """What one gradient step reads: some rows of an experience, the combined advantage, and what each trained tree needs of their
    prompts."""

    experience: Experience
    advantage_BR: jax.Array | None  # None until the critics' own losses have made the streams
    contexts: Mapping[str, sequences.Context]


def one_step(ppo: PPOConfig) -> bool:
    """An iteration is one gradient step: the values that its critic losses compute are those of the rollout's parameters, so that
    advantages need no forward pass of their own."""
    return ppo.epochs * ppo.minibatches == 1


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
    base: Mapping[str, Any] | None = None,
):
    """All gradient steps of one iteration.

    Args:
        params: trained tree name -> tree; donated. Gradients reach the policy and the trees that hold the two critic heads.
        base: the frozen backbone under trees that hold adapters.
        lam: float32 scalar, the multiplier.
        key: deals the rows anew in each epoch (ppo_lag/minibatches.py).
        ptx: supervised rows, split over the minibatches; None when the coefficient is 0.

    Returns:
        params, opt_state, metrics (each a float32 scalar, the mean over gradient steps). `mismatch` is the mean |log ratio| in
        the first minibatch, where it must be rounding error alone.
    """
    ppo = settings.ppo
    mask_BR = experience.rollout.response_mask_BR
    streams = experience.streams
    advantage_BR = None if streams is None else advantage(streams, mask_BR, lam, ppo)
    whole = Minibatch(experience, advantage_BR, _features(config, params, base, experience, images, settings))
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(ppo.epochs))
    rows = jax.vmap(lambda key: minibatches.draw(key, len(mask_BR), ppo.minibatches))(keys)
    rows = rows.reshape(-1, *rows.shape[2:])
    if ptx is not None:
        ptx = parts.split(ptx, ppo.minibatches)

    def gradient(tree, name: str, loss, batch):
        """Of loss(whole tree, part of the batch), by what is trained of the tree."""
        return step.accumulate(
            lambda tree, part: loss(with_backbone(base, tree), part), tree, batch, settings.microbatches, settings.trainable[name]
        )

    def descend(params, opt_state, name: str, loss, minibatch, grads_of_more=None):
        """One optimizer step on one tree, in place in the two dicts."""
        own_loss = functools.partial(loss, config, name, settings)
        grads, metrics, found = gradient(params[name], name, own_loss, minibatch)
        if grads_of_more is not None:
            grads = jax.tree.map(lambda g, more: g + settings.ptx_coef * more, grads, grads_of_more)
        params[name], opt_state[name], norm = step.apply_updates(settings.optimizers[name], params[name], opt_state[name], grads)
        return metrics | {"grad_norm": (norm["grad_norm"], jnp.float32(1))}, found

    def gradient_step(carry, index):
        params, opt_state = dict(carry[0]), dict(carry[1])
        minibatch = _behind_prefix(config, base, minibatches.take(whole, rows[index]), settings.microbatches)
        metrics, made = {}, {}
        for name in critic_trees(settings.places):
            learned, found = descend(params, opt_state, name, _critic_loss, minibatch)
            # The next tree waits until this one has its new parameters: what that took is gone then.
            minibatch, learned, params, opt_state = order.barrier_on_cpu((minibatch, learned, params, opt_state))
            metrics, made = metrics | _named(f"{name}_", learned), made | found
        if minibatch.advantage_BR is None:
            mask_BR = minibatch.experience.rollout.response_mask_BR
            minibatch = minibatch._replace(advantage_BR=advantage(made, mask_BR, lam, ppo))
            metrics |= stream_metrics(made, mask_BR)
        if settings.train_policy:
            name, ptx_grads = settings.places["policy"].tree, None
            if ptx is not None:
                rows_of_step = jax.tree.map(lambda x: x[index % ppo.minibatches], ptx)
                ptx_grads, ptx_metrics, _ = gradient(params[name], name, functools.partial(_ptx_loss, config), rows_of_step)
                metrics |= ptx_metrics
            metrics |= descend(params, opt_state, name, _policy_loss, minibatch, ptx_grads)[0]
        return (params, opt_state), {name: total / count for name, (total, count) in metrics.items() if name != "loss"}

    (params, opt_state), metrics = jax.lax.scan(gradient_step, (dict(params), dict(opt_state)), jnp.arange(rows.shape[0]))
    mismatch = {"mismatch": metrics["log_ratio_abs"][0]} if settings.train_policy else {}
    metrics = {name: jnp.mean(values) for name, values in metrics.items()} | mismatch
    if streams is not None:
        metrics |= {name: total / count for name, (total, count) in stream_metrics(streams, mask_BR).items()}
    return params, opt_state, metrics


def _features(config: VLMConfig, params, base, experience: Experience, images, settings: Update) -> dict[str, Features | None]:
    """Image features for each trained tree: the rollout's, or of its own tower."""
    own = {name: with_backbone(base, params[name]) for name in params if name in settings.own_tower}
    return {name: sequences.encode(config, own[name], images) if name in own else experience.rollout.features for name in params}


def _behind_prefix(config: VLMConfig, base, minibatch: Minibatch, microbatches: int) -> Minibatch:
    """Activated adapters all see one thing of a prompt: what the backbone under them makes of it. Others see its images alone."""
    if not config.activation:
        return minibatch
    made = functools.partial(sequences.prefix, config, {"backbone": base})
    prefix = parts.over_rows(lambda rows: made(rows, rows.features), minibatch.experience.rollout, microbatches)
    return minibatch._replace(contexts=dict.fromkeys(minibatch.contexts, prefix))


def advantage(streams: Mapping[str, Stream], mask_BR, lam, ppo: PPOConfig):
    """Both streams of a whole rollout as one, as `ppo.whiten` wants them."""
    both = [streams[role].adv_BR for role in scoring.CRITICS]
    if ppo.whiten == "scale":
        both = [masked.scale(adv_BR, mask_BR) for adv_BR in both]
    return lagrangian.combine(*both, lam)


def stream_metrics(streams: Mapping[str, Stream], mask_BR) -> step.Metrics:
    """How well each critic explains its returns, and whether what helps also costs: near +1, the multiplier settles a conflict."""
    reward, cost = (streams[role] for role in scoring.CRITICS)
    found = {
        "reward_explained_variance": ppo_losses.explained_variance(reward.value_BR, reward.return_BR, mask_BR),
        "cost_explained_variance": ppo_losses.explained_variance(cost.value_BR, cost.return_BR, mask_BR),
        "advantage_correlation": _correlation(reward.adv_BR, cost.adv_BR, mask_BR),
    }
    return {name: (value, jnp.float32(1)) for name, value in found.items()}


def _correlation(x_BR, y_BR, mask_BR):
    x_BR, y_BR = masked.scale(x_BR, mask_BR), masked.scale(y_BR, mask_BR)
    count = jnp.maximum(jnp.sum(mask_BR), 1)
    means = [jnp.sum(z_BR) / count for z_BR in (x_BR, y_BR)]
    return jnp.sum(x_BR * y_BR) / count - means[0] * means[1]


def critic_trees(places: Mapping[str, Place]) -> list[str]:
    """The trees that hold the two critic heads: one when they share a backbone."""
    return sorted({places["reward_critic"].tree, places["cost_critic"].tree})


def trained_trees(places: Mapping[str, Place]) -> list[str]:
    """Every tree an update changes."""
    return [places["policy"].tree, *critic_trees(places)]


def _named(prefix: str, metrics: dict) -> dict:
    """The critics' gradient norms under names of their own."""
    return {prefix + name if name in ("grad_norm", "loss") else name: value for name, value in metrics.items()}


def _policy_loss(config: VLMConfig, name: str, settings: Update, tree, batch: Minibatch):
    rollout = batch.experience.rollout
    logp_BR, entropy_BR = sequences.response_logp(
        config,
        tree,
        rollout,
        batch.contexts[name],
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


def _critic_loss(config: VLMConfig, name: str, settings: Update, tree, batch: Minibatch):
    """The value losses of every critic head on this tree, summed; beside them the streams that were made of its values."""
    experience, places, ppo = batch.experience, settings.places, settings.ppo
    mask_BR = experience.rollout.response_mask_BR
    scores = sequences.response_scores(config, tree, experience.rollout, batch.contexts[name])
    total, count, metrics, made = jnp.float32(0), jnp.float32(1), {}, {}
    for role in scoring.CRITICS:
        if places[role].tree == name:
            value_BR = scores[places[role].head][:, :-1]
            if experience.streams is None:
                stream = made[role] = scoring.stream(experience.token_BR[role], value_BR, mask_BR, ppo)
            else:
                stream = experience.streams[role]
            loss = ppo_losses.value(
                value_BR, stream.value_BR, stream.return_BR, mask_BR, clip_value=ppo.clip_value, reduction=ppo.reduction
            )
            total, count = total + loss.sum, loss.count
            metrics |= {f"{role}_loss": (loss.sum, loss.count), f"{role}_clip_fraction": loss.metrics["clip_fraction"]}
    return masked.Loss(total, count, metrics, made)


def _ptx_loss(config: VLMConfig, tree, batch: SupervisedBatch):
    logp_BR, _ = sequences.response_logp(config, tree, batch, sequences.encode(config, tree, batch.images))
    total, count = sft.sft(logp_BR, batch.response_mask_BR)
    return masked.Loss(total, count, {"ptx_loss": (total, count)})
