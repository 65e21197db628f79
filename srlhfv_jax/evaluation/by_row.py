"""Answers to prompts as they come, each drawn as its own request says: for the server.

`answering` draws all rows of a call alike. Here temperature, top_p, length and random numbers are arrays with a value for each
row, so that requests share batches and compiled programs.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from srlhfv_jax.batches import PromptBatch, Rollout
from srlhfv_jax.config import DataConfig, ModelConfig
from srlhfv_jax.data import loader
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example, Prompt
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.parallel import hosts
from srlhfv_jax.rollout.generate import generate_by_row
from srlhfv_jax.rollout.sampling import RowSampling
from srlhfv_jax.runs import checkpoints, few_shapes, inputs


class Draw(NamedTuple):
    """One answer, as it is wanted."""

    seed: tuple[int, ...]  # of its random numbers, each at least 0: with the same seed it is the same answer
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    length: int | None = None  # most tokens; None: as many as there is room for
    stop: tuple[str, ...] = ()  # texts that end it, and are not part of it


class Drawn(NamedTuple):
    """One answer."""

    text: str
    tokens: int  # that were needed for the text, its end included
    ended: bool  # by itself or at a text of `stop`; false: cut at its length


class RowPolicy(NamedTuple):
    """A checkpoint that draws each answer as it is wanted; from any thread."""

    checkpoint: Pretrained
    data: DataConfig  # the longest prompt (0: any), R and the batch size
    lengths: few_shapes.Lengths
    mesh: Mesh
    generate: Callable[..., Rollout]  # `generate_by_row`, jitted


def load_policy(path: str, data: DataConfig, model: ModelConfig, mesh: Mesh, lengths: few_shapes.Lengths) -> RowPolicy:
    """Load a policy.

    Raises:
        UserError: there is none at `path`.
    """
    static, places = ("config", "vocabulary"), hosts.row_sharding(mesh)
    jitted = jax.jit(generate_by_row, static_argnames=static, out_shardings=places)
    return RowPolicy(checkpoints.load(path, model, mesh), data, lengths, mesh, jitted)


def read(policy: RowPolicy, prompts: Sequence[Prompt]) -> list[int | Unusable]:
    """Tokens of each prompt with those of its pictures, which decode; or the reason why the policy cannot read it."""
    data = policy.data
    how = dict(system_prompt=data.system_prompt, prompt_length=data.prompt_length)
    return inputs.sizes(list(map(_example, prompts)), policy.checkpoint, data.max_pixels, **how)


def answer(policy: RowPolicy, prompts: Sequence[Prompt], draws: Sequence[Draw]) -> list[Drawn]:
    """One answer to each prompt, in order.

    Raises:
        UserError: a prompt that cannot be read.
    """
    with jax.set_mesh(policy.mesh):  # the mesh in force is a thread's own
        prepared = inputs.fit_loosely("prompts", list(map(_example, prompts)), policy.data, policy.checkpoint)
        if prepared.dropped:
            first = prepared.dropped[0]
            raise UserError(f"prompt {first.row} cannot be read by {policy.checkpoint.path}: {first.reason}: {first.detail}")
        answers: list[Any] = [None] * len(prompts)
        for group in few_shapes.groups(prepared, policy.lengths):
            for row, drawn in _answer_group(policy, group, draws):
                answers[row] = drawn
    return answers


def _answer_group(policy: RowPolicy, group: loader.Prepared, draws: Sequence[Draw]) -> Iterator[tuple[int, Drawn]]:
    """(index of the prompt, answer) of every row."""
    codec, R = group.codec, policy.data.response_length
    vocabulary = checkpoints.vocabulary(policy.checkpoint)
    encoded = iter(group.rows)
    for batch, real_B in inputs.in_order(group, policy.data, policy.mesh):
        rows = list(itertools.islice(encoded, int(real_B.sum())))
        wanted = [draws[row.row] for row in rows]
        rollout = _draw(policy, batch, wanted + wanted[-1:] * (len(real_B) - len(wanted)), vocabulary)
        tokens_BT, mask_BR, ended_B = hosts.to_host((rollout.tokens_BT, rollout.response_mask_BR, rollout.ended_B))
        for place, (row, draw) in enumerate(zip(rows, wanted, strict=True)):
            ids = tokens_BT[place, -R:][mask_BR[place]].tolist()
            text, used, stopped = cut(ids, draw.stop, codec.spoken)
            yield row.row, Drawn(text, used, stopped or bool(ended_B[place]))


def _draw(policy: RowPolicy, batch: PromptBatch, draws: Sequence[Draw], vocabulary) -> Rollout:
    R = policy.data.response_length
    sampling = RowSampling(
        np.array([draw.temperature for draw in draws], np.float32),
        np.array([draw.top_p for draw in draws], np.float32),
        np.array([min(draw.length or R, R) for draw in draws], np.int32),
    )
    uniform_BR = np.stack([uniform(draw.seed, R) for draw in draws])
    placed = hosts.global_batch((uniform_BR, sampling), policy.mesh)
    return policy.generate(policy.checkpoint.config, policy.checkpoint.params, batch, *placed, vocabulary=vocabulary)


def uniform(seed: Sequence[int], count: int) -> Float[np.ndarray, "R"]:
    """Random numbers in [0, 1) of one answer, in float32."""
    return np.random.default_rng(seed).random(count, np.float32)


def cut(ids: Sequence[int], stops: Sequence[str], decode: Callable[[Sequence[int]], str]) -> tuple[str, int, bool]:
    """(text before the first of `stops`, tokens that it and the stop took, whether there was one)."""
    text = decode(ids)
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    if not places:
        return text, len(ids), False
    used = next(count for count in range(1, len(ids) + 1) if any(stop in decode(ids[:count]) for stop in stops))
    return text[: min(places)], used, True


def _example(prompt: Prompt) -> Example:
    return Example(prompt.images, prompt.question, (), history=prompt.history)
