"""Rollout -> Experience: reference log-probabilities, end scores, token rewards and costs, and the advantage streams.

One forward pass per parameter tree, whatever the number of heads on it; the vision features of the rollout serve every tree whose
tower equals the policy's. Everything is computed under no gradient and returned in float32.
"""

from types import MappingProxyType
from typing import Mapping, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from srlhfv_jax.batches import Experience, Images, Rollout
from srlhfv_jax.config import PPOConfig, terms
from srlhfv_jax.config.constraints import FIRST, metric
from srlhfv_jax.losses import lagrangian, masked, ppo as ppo_losses, shaping
from srlhfv_jax.models import sequences
from srlhfv_jax.parallel.microbatches import over_rows, repeat
from srlhfv_jax.ppo_lag import advantages
from srlhfv_jax.ppo_lag.roles import critic, critics, heads
from srlhfv_jax.ppo_lag.static import Static
from srlhfv_jax.rollout import refill

Trees = Mapping[str, dict]  # tree name -> {"backbone": ..., "heads": ...}


class _Scores(NamedTuple):
    """The outputs of all roles on a rollout, each row by itself; float32."""

    logp_BR: Float[Array, "B R"]
    ref_logp_BR: Float[Array, "B R"]
    end_B: dict[str, Float[Array, "B"]]  # role of a head -> its score of the whole response
    value_BR: dict[str, Float[Array, "B R"]]  # critic role -> its values; empty without streams


Given = Mapping[str, Float[Array, "B"]]  # score -> the weighted sum of functions, where it has any; NaN: it is not about the row


def score(
    static: Static,
    trees: Trees,
    rollout: Rollout,
    images: Images | None,
    given: Given = MappingProxyType({}),
    kl_coef: Float[Array, ""] | None = None,
    *,
    streams: bool,
) -> Experience:
    """Score one rollout with every role.

    r_t = -beta kl_t + 1[end] R and c_t = +beta kl_t + 1[end] f(C) (Safe RLHF, arXiv 2310.12773, section 3.3), where f is the statistic
    that a constraint bounds; each stream has its own GAE. An answer that a constraint is not about costs nothing. Without critics R,
    f(C) and the KL of an answer are each compared with those of the other answers to its prompt.

    Args:
        trees: those of the places, without the critics' where there are no streams.
        images: of each prompt once.
        given: the part of the scores that functions have made of this rollout.
        kl_coef: beta where it is adapted; None: that of the settings.
        streams: False where the update makes one gradient step: it computes the values once more anyway.
    """
    ppo, parts = static.settings.ppo, static.settings.rollout.score_microbatches
    images = repeat(images, ppo.group_size) if static.own_towers else None
    scores = over_rows(lambda rows: _forward(static, trees, *rows, streams=streams), (rollout, images), parts)
    mask_BR, weight_BR = rollout.response_mask_BR, None
    if ppo.importance_cap:
        weight_BR = ppo_losses.importance(scores.logp_BR, rollout.logp_BR, mask_BR, cap=ppo.importance_cap)
    rollout = rollout._replace(logp_BR=scores.logp_BR)
    costs = static.settings.costs
    applies_B = {key: ~jnp.isnan(given[key]) for key in costs if key in given}
    reward_B = _end_score(static, "reward", scores.end_B, given) - _penalty(ppo, rollout)
    costs_B = {key: _about(_end_score(static, key, scores.end_B, given), applies_B.get(key)) for key in costs}
    end_costs_B = {key: constraint_statistic(static, key, cost_B, applies_B.get(key)) for key, cost_B in costs_B.items()}
    kl_BR = rollout.logp_BR - scores.ref_logp_BR
    beta = ppo.kl_coef if kl_coef is None else kl_coef
    scaled_B = {name: _scaled(x_B, ppo.scale_scores) for name, x_B in {"reward": reward_B, **end_costs_B}.items()}
    token_BR, every, groups = {}, {}, None
    if ppo.has_critics:
        shape = dict(kl_coef=beta if ppo.kl_in == "reward" else 0.0, clip_score=ppo.clip_score)
        for name, x_B in scaled_B.items():
            shaped = shaping.token_rewards if name == "reward" else shaping.token_costs
            token_BR[critic(name)] = shaped(kl_BR, x_B, mask_BR, **shape)
        every = {role: advantages.stream(token_BR[role], value_BR, mask_BR, ppo) for role, value_BR in scores.value_BR.items()}
    else:
        clipped = {name: jnp.clip(x_B, -ppo.clip_score, ppo.clip_score) for name, x_B in scaled_B.items()}
        groups = advantages.in_groups(clipped.pop("reward"), clipped, jnp.sum(masked.keep(kl_BR, mask_BR), axis=1), ppo)
    scored = rollout, scores.ref_logp_BR, reward_B, costs_B
    terms_B = {
        f"{name}.{term.name}": scores.end_B[terms.role(name, term)]
        for name, some in static.settings.terms.items()
        for term in some
        if term.is_learned and len(some) > 1
    }
    return Experience(*scored, token_BR, every or None, weight_BR, groups, applies_B, terms_B)


def constraint_statistic(
    static: Static, key: str, cost_B: Float[Array, "B"], applies_B: Bool[Array, "B"] | None
) -> Float[Array, "B"]:
    """f(C) of a constraint; 0 in rows that it is not about."""
    value_B = lagrangian.statistic(static.settings.costs[key].settings.kind, cost_B, static.calibration_of(key))
    return _about(value_B, applies_B)


def _about(value_B: Float[Array, "B"], applies_B: Bool[Array, "B"] | None) -> Float[Array, "B"]:
    return value_B if applies_B is None else jnp.where(applies_B, value_B, 0.0)


def metrics(
    static: Static, experience: Experience, sampled: Rollout, given: Given = MappingProxyType({})
) -> dict[str, Float[Array, ""]]:
    """The numbers of a scored rollout.

    Args:
        sampled: the rollout as the sampler left it.
        given: as in `score`.
    """
    mask_BR = sampled.response_mask_BR
    kl_BR = masked.keep(experience.rollout.logp_BR - experience.ref_logp_BR, mask_BR)
    first_B, about_first_B = experience.costs_B[FIRST], experience.applies_B.get(FIRST)
    numbers = {
        "reward": jnp.mean(experience.reward_B),
        "harm_rate_model": _mean(first_B > 0, about_first_B),
        "length": jnp.mean(jnp.sum(mask_BR, axis=1)),
        "ended": jnp.mean(sampled.ended_B),
    }
    if "reference" in static.places:
        numbers["kl"] = jnp.mean(jnp.sum(kl_BR, axis=1))
    if sampled.begun_B is not None:
        numbers["occupancy"] = refill.occupancy(sampled, static.settings.rollout.slots)
    for key, cost_B in experience.costs_B.items():
        about_B = experience.applies_B.get(key)
        numbers[metric(key, "cost")] = _mean(cost_B, about_B)
        numbers[metric(key, "constraint")] = _mean(constraint_statistic(static, key, cost_B, about_B), about_B)
        if about_B is not None:
            numbers[metric(key, "applies")] = jnp.mean(about_B)
    numbers |= _quantiles("reward", experience.reward_B) | _quantiles("cost", first_B)
    for name, term_B in experience.terms_B.items():  # functions have theirs already
        numbers[name] = _mean(term_B, experience.applies_B.get(name.partition(".")[0]))
    if experience.groups is not None:
        numbers |= advantages.group_metrics(experience.groups, static.settings.ppo.group_size)
    if static.recomputes_logp:  # corrected for in every iteration; else the update's `mismatch` says it
        if experience.weight_BR is not None:
            capped_BR = (experience.weight_BR >= static.settings.ppo.importance_cap).astype(jnp.float32)
            numbers["importance"] = masked.token_mean(experience.weight_BR, mask_BR)
            numbers["importance_capped"] = masked.token_mean(capped_BR, mask_BR)
        numbers["sampler_gap"] = masked.token_mean(jnp.abs(experience.rollout.logp_BR - sampled.logp_BR), mask_BR)
    return numbers


def _mean(value_B: Float[Array, "B"] | Bool[Array, "B"], about_B: Bool[Array, "B"] | None) -> Float[Array, ""]:
    """The mean over the rows that a constraint is about; 0 where it is about none."""
    if about_B is None:
        return jnp.mean(value_B)
    return jnp.sum(jnp.where(about_B, value_B, 0.0)) / jnp.maximum(jnp.sum(about_B), 1)


def _quantiles(name: str, score_B: Float[Array, "B"]) -> dict[str, Float[Array, ""]]:
    return {f"{name}.p{share}": jnp.quantile(score_B, share / 100) for share in (10, 50, 90)}


def row_numbers(experience: Experience) -> dict[str, Float[Array, "B"]]:
    """Reward, costs, length in tokens and KL to the reference (summed over its tokens) of each answer."""
    mask_BR = experience.rollout.response_mask_BR
    kl_BR = masked.keep(experience.rollout.logp_BR - experience.ref_logp_BR, mask_BR)
    lengths_B = jnp.sum(mask_BR, axis=1)
    costs = {metric(key, "cost"): cost_B for key, cost_B in experience.costs_B.items()}
    return {"reward": experience.reward_B, **costs, "length": lengths_B, "kl": jnp.sum(kl_BR, axis=1)}


def hidden(static: Static, trees: Trees, rollout: Rollout, images: Images | None) -> dict[str, Float[Array, "B R D"]]:
    """Tree name -> the hidden states that its heads read before each response token."""

    def read(rollout: Rollout, images: Images | None) -> dict[str, Float[Array, "B R D"]]:
        contexts = _contexts(static, trees, rollout, images)
        return {name: sequences.response_hidden(static.model, tree, rollout, contexts[name]) for name, tree in trees.items()}

    return over_rows(lambda rows: read(*rows), (rollout, images), static.settings.rollout.score_microbatches)


def _forward(static: Static, trees: Trees, rollout: Rollout, images: Images | None, *, streams: bool) -> _Scores:
    """All forward passes of `score`."""
    model, places = static.model, static.places
    contexts = _contexts(static, trees, rollout, images)
    sampling = dict(temperature=static.settings.rollout.temperature, never_V=static.vocabulary.never_V(model.text.vocab))

    def logp(role: str) -> Float[Array, "B R"]:
        name = places[role].tree
        return sequences.response_logp(model, trees[name], rollout, contexts[name], **sampling)[0]

    def head_outputs(read_heads, *roles: str) -> dict[str, Array]:
        """Role -> the output of its head, in one forward pass for each of their trees."""
        names = dict.fromkeys(places[role].tree for role in roles)
        outputs = {name: read_heads(model, trees[name], rollout, contexts[name]) for name in names}
        return {role: outputs[places[role].tree][places[role].head] for role in roles}

    values = head_outputs(sequences.response_scores, *critics(places)) if streams else {}
    logp_BR = logp("policy") if static.recomputes_logp else rollout.logp_BR
    return _Scores(
        logp_BR,
        logp("reference") if "reference" in places else logp_BR,
        head_outputs(sequences.end_scores, *heads(places)),
        {role: score_BR1[:, :-1] for role, score_BR1 in values.items()},
    )


def _contexts(static: Static, trees: Trees, rollout: Rollout, images: Images | None) -> dict[str, sequences.Context]:
    """Tree name -> what it needs of the prompts: image features, or a prefix that all share."""
    if static.model.activation:
        return dict.fromkeys(trees, sequences.prefix(static.model, next(iter(trees.values())), rollout, rollout.features))
    return {
        name: sequences.encode(static.model, tree, images) if name in static.own_towers else rollout.features
        for name, tree in trees.items()
    }


def _penalty(ppo: PPOConfig, rollout: Rollout) -> Float[Array, "B"]:
    """The part of the reward that lengths cost."""
    cut_B = ppo.missing_eos_penalty * (~rollout.ended_B)
    if not ppo.overlong:
        return cut_B
    return cut_B + ppo.overlong_penalty * shaping.overlong(rollout.response_mask_BR, last=ppo.overlong)


def _end_score(static: Static, score: str, end_B: Mapping[str, Array], given: Given) -> Float[Array, "B"]:
    """The sum of a score's terms."""
    weights = static.settings.learned[score]
    parts = [end_B[role] if weight == 1 else weight * end_B[role] for role, weight in weights.items()]
    first_B, *rest = parts + ([given[score]] if score in given else [])
    return sum(rest, first_B)


def _scaled(score_B: Float[Array, "B"], scale_scores: str) -> Float[Array, "B"]:
    """Divide a score stream by its standard deviation when asked; zero stays zero, the safe/unsafe border is not moved."""
    return masked.scale(score_B, jnp.ones_like(score_B, bool)) if scale_scores == "std" else score_B
