"""Rollout -> Experience: reference log-probabilities, end scores, token rewards and costs, and the two advantage streams.

One forward pass per parameter tree, whatever the number of heads on it; the vision features of the rollout serve every tree whose
tower equals the policy's. Everything is computed under no gradient and returned in float32.
"""

from typing import Mapping, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from srlhfv_jax.batches import Experience, Rollout, Stream
from srlhfv_jax.config import PPOConfig
from srlhfv_jax.losses import gae, lagrangian, masked, shaping
from srlhfv_jax.models import sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import microbatches as parts
from srlhfv_jax.ppo_lag.roles import Place
from srlhfv_jax.rollout.generate import Vocabulary

CRITICS = ("reward_critic", "cost_critic")


class Scoring(NamedTuple):
    """Static settings of a scoring pass."""

    places: Mapping[str, Place]  # role -> tree and head
    own_tower: frozenset[str]  # trees whose vision tower differs from the policy's and runs on its own
    ppo: PPOConfig
    constraint_kind: str
    temperature: float
    recompute_logp: bool  # replace behaviour log-probabilities by the training graph's
    vocabulary: Vocabulary
    streams: bool = True  # False where the update makes one gradient step: it computes the values once more anyway
    microbatches: int = 1  # parts of the rows that are read one after the other


class _Reading(NamedTuple):
    """What the roles say of a rollout, each row by itself; float32."""

    logp_BR: Float[Array, "B R"]
    ref_logp_BR: Float[Array, "B R"]
    end_B: dict[str, Float[Array, "B"]]  # role -> its score of the whole response
    value_BR: dict[str, Float[Array, "B R"]]  # critic role -> its values; empty where no streams are asked for


def score(config: VLMConfig, trees: Mapping[str, dict], rollout: Rollout, images, scoring: Scoring) -> Experience:
    """Score one rollout with every role.

    r_t = -beta kl_t + 1[end] R and c_t = +beta kl_t + 1[end] C (Safe RLHF, arXiv 2310.12773, section 3.3); each stream has its
    own GAE. `trees` maps a tree name to {"backbone": ..., "heads": ...}, without the critics' where no streams are asked for; the
    places say which role lives where.
    """
    ppo = scoring.ppo
    found = parts.over_rows(lambda rows: _read(config, trees, *rows, scoring), (rollout, images), scoring.microbatches)
    rollout, mask_BR = rollout._replace(logp_BR=found.logp_BR), rollout.response_mask_BR
    reward_B = found.end_B["reward"] - ppo.missing_eos_penalty * (~rollout.ended_B)
    cost_B = found.end_B["cost"]
    end_cost_B = lagrangian.shaped_cost(scoring.constraint_kind, cost_B)
    kl_BR = rollout.logp_BR - found.ref_logp_BR
    shape = dict(kl_coef=ppo.kl_coef, clip_score=ppo.clip_score)
    token_BR = {
        "reward_critic": shaping.token_rewards(kl_BR, _scaled(reward_B, ppo.scale_scores), mask_BR, **shape),
        "cost_critic": shaping.token_costs(kl_BR, _scaled(end_cost_B, ppo.scale_scores), mask_BR, **shape),
    }
    streams = None
    if scoring.streams:
        streams = {role: stream(token_BR[role], found.value_BR[role], mask_BR, ppo) for role in CRITICS}
    return Experience(rollout, found.ref_logp_BR, reward_B, cost_B, token_BR, streams)


def hidden(config: VLMConfig, trees: Mapping[str, dict], rollout: Rollout, images, scoring: Scoring) -> dict[str, Array]:
    """Tree name -> hidden_BRD, what its heads read before each response token."""

    def read(rollout: Rollout, images) -> dict[str, Array]:
        contexts = _contexts(config, trees, rollout, images, scoring)
        return {name: sequences.response_hidden(config, tree, rollout, contexts[name]) for name, tree in trees.items()}

    return parts.over_rows(lambda rows: read(*rows), (rollout, images), scoring.microbatches)


def _read(config: VLMConfig, trees: Mapping[str, dict], rollout: Rollout, images, scoring: Scoring) -> _Reading:
    """All forward passes of `score`."""
    places = scoring.places
    contexts = _contexts(config, trees, rollout, images, scoring)
    never_V = scoring.vocabulary.never_V(config.text.vocab)

    def logp(role: str) -> Float[Array, "B R"]:
        name = places[role].tree
        how = dict(temperature=scoring.temperature, never_V=never_V)
        return sequences.response_logp(config, trees[name], rollout, contexts[name], **how)[0]

    def read_by(heads, *roles: str) -> dict:
        """What each role's head reads, in one forward pass for each of their trees."""
        names = dict.fromkeys(places[role].tree for role in roles)
        found = {name: heads(config, trees[name], rollout, contexts[name]) for name in names}
        return {role: found[places[role].tree][places[role].head] for role in roles}

    values = read_by(sequences.response_scores, *CRITICS) if scoring.streams else {}
    return _Reading(
        logp("policy") if scoring.recompute_logp else rollout.logp_BR,
        logp("reference"),
        read_by(sequences.end_scores, "reward", "cost"),
        {role: score_BR1[:, :-1] for role, score_BR1 in values.items()},
    )


def _contexts(config: VLMConfig, trees: Mapping[str, dict], rollout: Rollout, images, scoring: Scoring) -> dict:
    """What each tree needs of the prompts."""
    if config.activation:
        return dict.fromkeys(trees, sequences.prefix(config, next(iter(trees.values())), rollout, rollout.features))
    return {
        name: sequences.encode(config, tree, images) if name in scoring.own_tower else rollout.features
        for name, tree in trees.items()
    }


def stream(token_BR, value_BR, mask_BR, ppo: PPOConfig) -> Stream:
    """Advantages and returns of one critic's values; nothing is differentiated through them."""
    value_BR = jnp.where(mask_BR, jax.lax.stop_gradient(value_BR), 0.0)
    return Stream(value_BR, *gae.gae(token_BR, value_BR, mask_BR, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda))


def _scaled(score_B, how: str):
    """Divide a score stream by its standard deviation when asked; zero stays zero, the safe/unsafe border is not moved."""
    return masked.scale(score_B, jnp.ones_like(score_B, bool)) if how == "std" else score_B
