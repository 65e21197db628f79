"""Policies' answers with what a scorer needs to read them token by token: one model is in memory at a time."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from srlhfv_jax.batches import Images, PromptBatch, Rollout
from srlhfv_jax.config import DataConfig, ModelConfig
from srlhfv_jax.data import loader
from srlhfv_jax.data.chat import codec
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import scoring
from srlhfv_jax.evaluation.answering import Sampler, keys, sample_answers
from srlhfv_jax.evaluation.answers import Answers
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.parallel import hosts
from srlhfv_jax.runs import checkpoints, inputs


class SampledPolicy(NamedTuple):
    """One policy's answers, and what a scorer needs to read them."""

    answers: Answers
    prompts: loader.Prepared
    rollouts: tuple[Rollout, ...]  # one per batch, on the host, without features
    vocabulary: Mapping[str, int]  # token ids of the policy's tokenizer


def sample(name: str, policy: Pretrained, prompts: loader.Prepared, sampler: Sampler, seed: int) -> SampledPolicy:
    """Answer every prompt once, and keep the rollouts for a scorer."""
    draw, rollouts = sampler.draw(policy, keys(seed)), []

    def draw_and_keep(batch: PromptBatch, index: int) -> Rollout:
        rollouts.append(hosts.to_host(draw(batch, index)._replace(features=None)))
        return rollouts[-1]

    answers, _ = sample_answers(
        draw_and_keep,
        sampler.batches(prompts),
        [row.row for row in prompts.rows],
        prompts.codec.spoken,
        temperature=sampler.temperature,
        progress=_progress(name, len(prompts.rows)),
    )
    return SampledPolicy(answers, prompts, tuple(rollouts), prompts.codec.tokenizer.get_vocab())


def score(path: str, sampled: Mapping[str, SampledPolicy], sampler: Sampler, model: ModelConfig) -> dict[str, dict[str, Any]]:
    """{policy: {head: scores_B}} of every answer, as sampled token by token.

    Raises:
        UserError: tokens mean something else to the scorer than to a policy.
    """
    checkpoint = checkpoints.load(path, model, sampler.mesh)
    read = functools.partial(scoring.jit_scores(checkpoint.config, sampler.mesh), scoring.scorer_tree(checkpoint))
    return _read(f"--scorer={path}", checkpoint, read, sampled, sampler)


def log_probabilities(
    option: str, path: str, read: scoring.Logp, sampled: Mapping[str, SampledPolicy], sampler: Sampler, model: ModelConfig
) -> dict[str, Float[np.ndarray, "B"]]:
    """{policy: log π(y|x)} of every answer, as sampled token by token, under the checkpoint at `path`; in nats.

    Args:
        option: names the checkpoint in messages.
        read: of `scoring.jit_logp`, on the sampler's mesh.

    Raises:
        UserError: tokens mean something else to the checkpoint than to a policy.
    """
    checkpoint = checkpoints.load(path, model, sampler.mesh)
    of_rollout = functools.partial(read, checkpoint.config, checkpoints.vocabulary(checkpoint), checkpoint.params)
    read_by = _read(f"{option}={path}", checkpoint, of_rollout, sampled, sampler)
    return {name: by_head[scoring.LOGP] for name, by_head in read_by.items()}


def _read(
    option: str,
    checkpoint: Pretrained,
    read: Callable[[Rollout, Images | None], Mapping[str, Any]],
    sampled: Mapping[str, SampledPolicy],
    sampler: Sampler,
) -> dict[str, dict[str, Any]]:
    """{policy: {number: [B]}}: what a checkpoint says of each answer.

    Raises:
        UserError: tokens mean something else to it than to a policy.
    """
    mesh, vocabulary = sampler.mesh, codec(checkpoint.processor).tokenizer.get_vocab()
    rows = hosts.own_rows(sampler.data.batch_size, mesh)

    def read_pair(pair: tuple[PromptBatch, Rollout]) -> dict[str, Any]:
        batch, rollout = pair
        placed = hosts.global_batch(jax.tree.map(lambda values: values[rows], rollout), mesh)
        return hosts.to_host(read(placed, batch.images))

    scores = {}
    for name, policy in sampled.items():
        if policy.vocabulary != vocabulary:
            raise UserError(f"{option} and policy {name!r} have different tokenizers: scores of its tokens would mean nothing")
        batches = zip(sampler.batches(policy.prompts), policy.rollouts, strict=True)
        scores[name] = scoring.model_scores(read_pair, (((batch, rollout), real_B) for (batch, real_B), rollout in batches))
    return scores


def read_prompts(data: DataConfig, policy: Pretrained) -> loader.Prepared:
    """Rows to answer; P is that of the longest prompt unless it was given."""
    if data.prompt_length:
        return inputs.prepare("prompts", data, policy)
    unlimited = dataclasses.replace(data, prompt_length=loader.UNLIMITED, batch_size=1)
    prompts = inputs.prepare("prompts", unlimited, policy)
    longest = max(len(row.prompt) for row in prompts.rows)
    return prompts._replace(frame=prompts.frame._replace(prompt_length=longest))


def _progress(name: str, total: int) -> Callable[[int], None]:
    hosts.say(f"{name}: compiling, then {total} answers")
    return lambda done: hosts.say(f"{name}: {done} of {total} answers")
