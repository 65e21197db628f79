"""The one sampler of answers: prompts -> batches -> `rollout.generate` -> texts.

answer_batches, sample_answers   the loop, over any function that draws rollouts (PPO-Lagrangian's validation brings its own)
Sampler                          `generate`, jitted on one mesh, for checkpoints
Policy                           a checkpoint that answers prompts as they come, from any thread: for `srlhfv generate`, guarded
                                 rounds and the server
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Key

from srlhfv_jax.batches import PromptBatch, Rollout
from srlhfv_jax.config import DataConfig, ModelConfig
from srlhfv_jax.data import collate, loader
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example, Prompt
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.answers import Answers, make
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.parallel import hosts
from srlhfv_jax.rollout.generate import generate
from srlhfv_jax.rollout.sampling import Sampling
from srlhfv_jax.runs import checkpoints, inputs
from srlhfv_jax.training import state as states

Batches = Iterable[tuple[PromptBatch, Bool[np.ndarray, "B"]]]  # prompts on the devices of all processes, and which rows are real
Draw = Callable[[PromptBatch, int], Rollout]  # (prompts, index of the batch) -> rollout; the index seeds the batch
Decode = Callable[[Sequence[int]], str]  # response ids without padding -> text without special tokens
Score = Callable[[PromptBatch, Rollout], Mapping[str, np.ndarray]]  # -> {head: [B]}
Keys = Callable[[int], Key[Array, ""]]  # index of a batch -> the key that it is drawn with

MIN_PROMPT_LENGTH = 32  # prompts as they come are padded to this, or its double, and so on: each length compiles once


class AnsweredBatch(NamedTuple):
    """Answers to the real rows of one batch, in order."""

    texts: list[str]
    lengths: list[int]  # response tokens, the end-of-sequence token included
    ended: list[bool]  # false: cut at the longest response allowed
    scores: dict[str, Float[np.ndarray, "B"]]  # by learned models; {} without `score`


def answer_batches(draw: Draw, batches: Batches, decode: Decode, score: Score | None = None) -> Iterator[AnsweredBatch]:
    """Answer every prompt of `batches` once, batch by batch; rows that fill up the last batch are thrown away."""
    for index, (batch, real_B) in enumerate(batches):
        rollout = draw(batch, index)
        tokens_BT, mask_BR, ended_B = hosts.to_host((rollout.tokens_BT, rollout.response_mask_BR, rollout.ended_B))
        tokens_BR = tokens_BT[:, -mask_BR.shape[1] :]
        rows = np.flatnonzero(real_B).tolist()
        yield AnsweredBatch(
            texts=[decode(tokens_BR[row][mask_BR[row]].tolist()) for row in rows],
            lengths=[int(mask_BR[row].sum()) for row in rows],
            ended=[bool(ended_B[row]) for row in rows],
            scores={
                name: np.asarray(values_B, np.float64)[real_B]
                for name, values_B in (score(batch, rollout) if score else {}).items()
            },
        )


def sample_answers(
    draw: Draw,
    batches: Batches,
    prompts: Sequence[int],
    decode: Decode,
    *,
    temperature: float,
    score: Score | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Answers, dict[str, Float[np.ndarray, "B"]]]:
    """Answer every prompt of `batches` once.

    Args:
        prompts: the number of each real row's prompt, in order.
        score: scores of learned models for each rollout.
        progress: told the number of answers so far after each batch.

    Returns:
        The answers and {head: scores_B} in the same order ({} without `score`).
    """
    texts, lengths, ended = [], [], []
    scores: dict[str, list[np.ndarray]] = {}
    for batch in answer_batches(draw, batches, decode, score):
        texts += batch.texts
        lengths += batch.lengths
        ended += batch.ended
        for name, values_B in batch.scores.items():
            scores.setdefault(name, []).append(values_B)
        if progress:
            progress(len(texts))
    answers = make(prompts, texts, lengths, ended, temperature)
    return answers, {name: np.concatenate(parts) for name, parts in scores.items()}


def keys(seed: int, first: int = 0) -> Keys:
    """The keys of answers drawn with `seed`; batch 0 takes the key number `first`."""
    return lambda index: states.key(seed, first + index, "evaluation")


class Sampler:
    """`generate`, jitted on one mesh. Checkpoints of one architecture and vocabulary, and batches of one shape, compile once."""

    def __init__(self, mesh: Mesh, data: DataConfig, *, temperature: float) -> None:
        """
        Args:
            data: batch size and R; its path is not read.
            temperature: 0 is greedy.
        """
        self.mesh, self.data, self.temperature = mesh, data, temperature
        self._generate = jax.jit(
            generate,
            static_argnames=("config", "response_length", "vocabulary", "sampling"),
            out_shardings=hosts.row_sharding(mesh),
        )

    def draw(self, policy: Pretrained, keys: Keys) -> Draw:
        """A function that draws the policy's rollouts, each batch with its key."""
        vocabulary, sampling = checkpoints.vocabulary(policy), Sampling(self.temperature)

        def rollout(batch: PromptBatch, index: int) -> Rollout:
            return self._generate(
                policy.config,
                policy.params,
                batch,
                keys(index),
                response_length=self.data.response_length,
                vocabulary=vocabulary,
                sampling=sampling,
            )

        return rollout

    def batches(self, prompts: loader.Prepared) -> Batches:
        """Every prompt once, in order."""
        return inputs.in_order(prompts, self.data, self.mesh)

    def answers(self, policy: Pretrained, prompts: loader.Prepared, keys: Keys) -> Answers:
        """One answer to every prompt, in order."""
        draw, rows = self.draw(policy, keys), [row.row for row in prompts.rows]
        answers, _ = sample_answers(draw, self.batches(prompts), rows, prompts.codec.spoken, temperature=self.temperature)
        return answers


def named_paths(text: str) -> dict[str, str]:
    """ "a=path,b=path" -> {a: path, b: path}.

    Raises:
        UserError: an item without a name, or a name twice.
    """
    named: dict[str, str] = {}
    for item in text.split(","):
        name, equals, path = item.strip().partition("=")
        if not (name and equals and path):
            raise UserError(f"--policies must be name=path,name=path, got {item!r}")
        if name in named:
            raise UserError(f"--policies names {name!r} twice: give each policy a name of its own")
        named[name] = path
    return named


def read_prompts(path: Path, data: DataConfig, model: Pretrained) -> loader.Prepared:
    """The prompts at `path`, as the processor of `model` reads them (its weights are not needed)."""
    return inputs.prepare("prompts", dataclasses.replace(data, path=str(path)), model)


def two_different(drawn: Sequence[Answers], row: int) -> tuple[str, str] | None:
    """The first two different texts among several answers to one prompt; None if all are alike."""
    first, *rest = (answers.texts[row] for answers in drawn)
    return next(((first, other) for other in rest if other != first), None)


class Policy(NamedTuple):
    """A checkpoint that answers prompts as they come."""

    checkpoint: Pretrained
    sampler: Sampler  # its `data` has the longest prompt too (0: any)
    seed: int


def load_policy(path: str, data: DataConfig, model: ModelConfig, mesh: Mesh, *, temperature: float, seed: int) -> Policy:
    """Load a policy; arguments as those of `Sampler`."""
    return Policy(checkpoints.load(path, model, mesh), Sampler(mesh, data, temperature=temperature), seed)


def unreadable(policy: Policy, prompts: Sequence[Prompt]) -> list[Unusable | None]:
    """The reason why the policy cannot read each prompt; None of one it can."""
    data = policy.sampler.data
    how = dict(system_prompt=data.system_prompt, prompt_length=data.prompt_length)
    return inputs.unreadable(inputs.sizes(list(map(_example, prompts)), policy.checkpoint, data.max_pixels, **how))


def answer_prompts(policy: Policy, prompts: Sequence[Prompt], number: int) -> list[str]:
    """One answer to each prompt, in order; from any thread.

    Args:
        number: it seeds the sampling (0 to 2**31): further answers to the same prompts have other numbers.

    Raises:
        UserError: a prompt that `unreadable` names.
    """
    sampler = policy.sampler
    with jax.set_mesh(sampler.mesh):  # the mesh in force is a thread's own
        key = states.key(policy.seed, number, "evaluation")
        prepared = inputs.fit_loosely("prompts", list(map(_example, prompts)), sampler.data, policy.checkpoint)
        if prepared.dropped:
            first = prepared.dropped[0]
            raise UserError(f"prompt {first.row} cannot be read by {policy.checkpoint.path}: {first.reason}: {first.detail}")
        answers = sampler.answers(policy.checkpoint, _rounded(prepared), lambda index: jax.random.fold_in(key, index))
    return list(answers.texts)


def _rounded(prepared: loader.Prepared) -> loader.Prepared:
    """The same rows in a frame, and room for pictures, that many other prompts need as well."""
    frame = prepared.frame._replace(prompt_length=_doubled(MIN_PROMPT_LENGTH, prepared.frame.prompt_length))
    room = prepared.room
    if room is not None and room.counted:
        tile = prepared.codec.reader.side**2  # patches of it; 0: there are no tiles
        sizes = {
            collate.Size(
                tile * _doubled(1, size.patches // tile) if tile else _doubled(MIN_PROMPT_LENGTH, size.patches),
                _doubled(MIN_PROMPT_LENGTH, size.placeholders),
            )
            for size in room.sizes
        }
        room = room._replace(sizes=tuple(sorted(sizes)))
    return prepared._replace(frame=frame, room=room)


def _doubled(start: int, least: int) -> int:
    while start < least:
        start *= 2
    return start


def _example(prompt: Prompt) -> Example:
    return Example(prompt.images, prompt.question, (), history=prompt.history)
