"""A policy that answers whatever prompts come along: for `srlhfv generate`, for guarded rounds, for the server.

prompts -> token ids -> batches of one size, lengths and pictures rounded up -> the jitted sampler -> texts
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from srlhfv_jax.config import DataConfig, ModelConfig
from srlhfv_jax.data import collate, loader
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example, Prompt
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import policies
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.parallel import hosts
from srlhfv_jax.rollout.generate import generate
from srlhfv_jax.rollout.sampling import Sampling
from srlhfv_jax.runs import checkpoints, inputs
from srlhfv_jax.training import state as states

SHORTEST = 32  # prompts are padded to this, or its double, and so on: each length compiles once


class Policy(NamedTuple):
    """A checkpoint and its sampler."""

    loaded: Pretrained
    data: DataConfig
    mesh: jax.sharding.Mesh
    sample: Callable  # (params, prompts, key) -> Rollout
    temperature: float
    seed: int


def load(path: str, data: DataConfig, model: ModelConfig, mesh: jax.sharding.Mesh, *, temperature: float, seed: int) -> Policy:
    """Load a policy.

    Args:
        data: R, the batch size, and the longest prompt (0: any); its path is not read.
        temperature: 0 is greedy.
        seed: of the sampling.
    """
    loaded = checkpoints.load(path, model, mesh)
    settings = dict(
        response_length=data.response_length, vocabulary=checkpoints.vocabulary(loaded), sampling=Sampling(temperature)
    )
    sample = jax.jit(functools.partial(generate, loaded.config, **settings), out_shardings=hosts.row_sharding(mesh))
    return Policy(loaded, data, mesh, sample, temperature, seed)


def unreadable(policy: Policy, prompts: Sequence[Prompt]) -> list[Unusable | None]:
    """Why the policy cannot read each prompt; None of one it can."""
    data = policy.data
    return inputs.unreadable(list(map(_example, prompts)), policy.loaded, data.max_pixels, prompt_length=data.prompt_length)


def answers(policy: Policy, prompts: Sequence[Prompt], draw: int) -> list[str]:
    """One answer to each prompt, in order; from any thread.

    Args:
        draw: further answers to the same prompts have other numbers: it seeds the sampling (0 to 2**31).

    Raises:
        UserError: a prompt that `unreadable` names.
    """
    examples = [_example(prompt) for prompt in prompts]
    with jax.set_mesh(policy.mesh):  # the mesh in force is a thread's own
        prepared = inputs.fit_loosely("prompts", examples, policy.data, policy.loaded)
        if prepared.dropped:
            first = prepared.dropped[0]
            raise UserError(f"prompt {first.row} cannot be read by {policy.loaded.path}: {first.reason}: {first.detail}")
        return _sampled(policy, _rounded(prepared), draw)


def _sampled(policy: Policy, prepared: loader.Prepared, draw: int) -> list[str]:
    key = states.key(policy.seed, draw, "evaluation")

    def rollout(batch, index: int):
        return policy.sample(policy.loaded.params, batch, jax.random.fold_in(key, index))

    said, _ = policies.sample_answers(
        rollout,
        inputs.in_order(prepared, policy.data, policy.mesh),
        [row.row for row in prepared.rows],
        prepared.codec.spoken,
        temperature=policy.temperature,
    )
    return list(said.texts)


def _rounded(prepared: loader.Prepared) -> loader.Prepared:
    """The same rows in a frame, and room for pictures, that many other prompts need as well."""
    frame = prepared.frame._replace(prompt_length=_doubled(SHORTEST, prepared.frame.prompt_length))
    room = prepared.room
    if room is not None and room.counted:
        sizes = {collate.Size(*(_doubled(SHORTEST, number) for number in size)) for size in room.sizes}
        room = room._replace(sizes=tuple(sorted(sizes)))
    return prepared._replace(frame=frame, room=room)


def _doubled(start: int, least: int) -> int:
    while start < least:
        start *= 2
    return start


def _example(prompt: Prompt) -> Example:
    return Example(prompt.images, prompt.question, ())
