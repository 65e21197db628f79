"""Answers to prompts as they come, each drawn as its own request says: for the server.

`answering` draws all rows of a call alike. Here temperature, top_p, length and random numbers are arrays with a value for each
row, so that requests share batches and compiled programs.
"""

import bisect
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float

from srlhfv_jax.batches import PromptBatch
from srlhfv_jax.config import DataConfig, ModelConfig
from srlhfv_jax.data import loader
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example, Prompt
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.parallel import hosts
from srlhfv_jax.rollout import generate
from srlhfv_jax.rollout.sampling import RowSampling
from srlhfv_jax.runs import checkpoints, few_shapes, inputs

STOP_BLOCK = 32  # tokens: at most so many less one are drawn in vain behind a text that ends an answer

Decode = Callable[[Sequence[int]], str]


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
    begin: Callable[..., generate.Decoding]  # `generate.begin`, jitted
    go_on: Callable[..., generate.Decoding]  # `generate.go_on`, jitted


def load_policy(path: str, data: DataConfig, model: ModelConfig, mesh: Mesh, lengths: few_shapes.Lengths) -> RowPolicy:
    """Load a policy.

    Raises:
        UserError: there is none at `path`.
    """
    return RowPolicy(checkpoints.load(path, model, mesh), data, lengths, mesh, *jitted(mesh))


def jitted(mesh: Mesh) -> tuple[Callable[..., generate.Decoding], Callable[..., generate.Decoding]]:
    """`generate.begin` and `generate.go_on`, each compiled once for a shape: what they hand over lies in one way."""
    how = dict(static_argnames=("config", "vocabulary"), out_shardings=NamedSharding(mesh, PartitionSpec()))
    begin, go_on = functools.partial(generate.begin), functools.partial(generate.go_on)  # with caches of their own
    return jax.jit(begin, **how), jax.jit(go_on, donate_argnames="state", **how)


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
    decode, eos = group.codec.spoken, checkpoints.vocabulary(policy.checkpoint).eos
    encoded = iter(group.rows)
    for batch, real_B in inputs.in_order(group, policy.data, policy.mesh):
        rows = list(itertools.islice(encoded, int(real_B.sum())))
        wanted = [draws[row.row] for row in rows]
        drawn = _draw(policy, batch, real_B, wanted + wanted[-1:] * (len(real_B) - len(wanted)), decode)
        for row, draw, ids in zip(rows, wanted, drawn, strict=False):
            text, used, stopped = cut(ids, draw.stop, decode)
            yield row.row, Drawn(text, used, stopped or ids[-1] in eos)


def _draw(
    policy: RowPolicy, batch: PromptBatch, real_B: Bool[np.ndarray, "B"], draws: Sequence[Draw], decode: Decode
) -> list[list[int]]:
    """Tokens of each row. Where there are texts to stop at, the host looks for them every `STOP_BLOCK` tokens.

    Args:
        real_B: false of rows that fill the batch: they draw no more than a token.
    """
    R, model = policy.data.response_length, policy.checkpoint
    sampling = RowSampling(
        np.array([draw.temperature for draw in draws], np.float32),
        np.array([draw.top_p for draw in draws], np.float32),
        np.array([min(draw.length or R, R) for draw in draws], np.int32),
    )
    placed = hosts.global_batch((np.stack([uniform(draw.seed, R) for draw in draws]), sampling), policy.mesh)
    static = dict(vocabulary=checkpoints.vocabulary(model))
    state = policy.begin(model.config, model.params, batch, *placed, **static)
    asked, ended_B, ids = batch._replace(images=None), ~real_B, []
    block = STOP_BLOCK if any(draw.stop for draw in draws) else R
    for until in range(block, R + block, block):
        state = policy.go_on(model.config, model.params, asked, *placed, state, np.int32(until), ended_B, **static)
        tokens_BR, mask_BR, alive_B = hosts.to_host((state.tokens_BR, state.mask_BR, state.alive_B))
        ids = [tokens_R[mask_R].tolist() for tokens_R, mask_R in zip(tokens_BR, mask_BR, strict=True)]
        stopped_B = [_holds(decode(own), draw.stop) for own, draw in zip(ids, draws, strict=True)]
        ended_B = ~alive_B | np.array(stopped_B)
        if ended_B.all():
            break
    return ids


def uniform(seed: Sequence[int], count: int) -> Float[np.ndarray, "R"]:
    """Random numbers in [0, 1) of one answer, in float32."""
    return np.random.default_rng(seed).random(count, np.float32)


def cut(ids: Sequence[int], stops: Sequence[str], decode: Decode) -> tuple[str, int, bool]:
    """(text before the first of `stops`, tokens that it and the stop took, whether there was one)."""
    text = decode(ids)
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    if not places:
        return text, len(ids), False
    counts = range(len(ids) + 1)
    used = bisect.bisect_left(counts, True, key=lambda count: _holds(decode(ids[:count]), stops))
    return text[: min(places)], used, True


def _holds(text: str, stops: Sequence[str]) -> bool:
    return any(stop in text for stop in stops)


def _example(prompt: Prompt) -> Example:
    return Example(prompt.images, prompt.question, (), history=prompt.history)
