"""Sample responses: the vision tower and the prompt once, then one cached decoder step per token until every row has ended.

Pure and jit-able; the caller jits it once with the static arguments bound. Log-probabilities are recorded as the tokens are
drawn, so PPO needs no second pass for them.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from srlhfv_jax.batches import Features, PromptBatch, Rollout
from srlhfv_jax.losses import logprob
from srlhfv_jax.models import lora, vlm
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel.microbatches import over_rows, repeat
from srlhfv_jax.rollout.sampling import RowSampling, Sampling, choose, choose_by_row


class Vocabulary(NamedTuple):
    """Ids of the tokenizer that a sampler needs. Static."""

    pad: int
    eos: tuple[int, ...]  # any of these ends a response
    never: tuple[int, ...]  # never sampled: image placeholder, pad, begin-of-sequence

    def never_V(self, size: int) -> Bool[Array, "V"]:
        return jnp.zeros(size, bool).at[jnp.asarray(self.never, jnp.int32)].set(True)


class Rule(NamedTuple):
    """A sampler of tokens."""

    temperature: float | Float[Array, "B 1"]  # of recorded log-probabilities
    choose: Callable[[Float[Array, "B"], Float[Array, "B V"]], Int[Array, "B"]]  # (random numbers, log-probabilities) -> tokens
    length_B: Int[Array, "B"] | None  # most tokens of each answer; None: as many as there is room for


class Draws(NamedTuple):
    """Arrays and settings that the tokens of some answers are drawn from."""

    config: VLMConfig
    params: dict  # for decoding
    prompts: PromptBatch  # one for each answer
    uniform_BR: Float[Array, "B R"]  # the random number in [0, 1) that draws each token
    vocabulary: Vocabulary
    rule: Rule


class Decoding(NamedTuple):
    """Responses that are being drawn."""

    step: Int[Array, ""]  # response tokens drawn so far
    tokens_BR: Int[Array, "B R"]
    mask_BR: Bool[Array, "B R"]
    logp_BR: Float[Array, "B R"]
    alive_B: Bool[Array, "B"]  # no end-of-sequence token yet, and room for another token
    cache: vlm.Cache  # of prompts and answers, or of answers alone
    prompts: vlm.Cache | None = None  # where one has several answers


def generate(
    config: VLMConfig,
    params,
    prompts: PromptBatch,
    key: Array,
    *,
    response_length: int,
    vocabulary: Vocabulary,
    sampling: Sampling = Sampling(),
    early_exit: bool = True,
    microbatches: int = 1,
    answers: int = 1,
    length_B: Int[Array, "B"] | None = None,
) -> Rollout:
    """Draw `answers` responses of at most `response_length` (R) tokens to each prompt; those of one prompt are neighbours.

    Token t of every row is drawn with `fold_in(key, t)`, so the same key gives the same rollout, whatever the mesh and the
    microbatches. `early_exit=False` always runs R steps (for timing).

    The vision tower and the decoder read a prompt once, and its keys and values are there once for all answers to it.

    Args:
        microbatches: the prompts are answered in so many parts, one after the other: one part's cache is in memory at a time.
        length_B: of each answer, which ends there and nowhere else (for timing); None: it ends at an end-of-sequence token.
    """
    B, R = answers * prompts.tokens_BP.shape[0], response_length
    uniform_BR = uniforms(key, B, R)
    decoding = vlm.for_decoding(config, params)
    if length_B is not None:
        vocabulary = vocabulary._replace(eos=())

    def answer(part: tuple[PromptBatch, Float[Array, "B G R"], Int[Array, "B G"] | None]) -> Rollout:
        questions, uniform_BGR, length_BG = part
        rule = Rule(
            sampling.logp_temperature,
            functools.partial(choose, sampling=sampling),
            None if length_BG is None else length_BG.reshape(-1),
        )
        features = None if questions.images is None else vlm.encode_images(config, params, questions.images)
        draws = Draws(config, decoding, repeat(questions, answers), uniform_BGR.reshape(-1, R), vocabulary, rule)
        return by_prompt(_answer(draws, questions, features, early_exit), answers)

    def by_prompt(rows, count: int):
        return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), rows)

    rollout = over_rows(answer, (prompts, by_prompt(uniform_BR, answers), by_prompt(length_B, answers)), microbatches)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)


def uniforms(key: Array, answers: int, tokens: int) -> Float[Array, "B R"]:
    """The random number in [0, 1) that draws each token: of token t of all answers by `fold_in(key, t)`."""
    return jax.vmap(lambda t: jax.random.uniform(jax.random.fold_in(key, t), (answers,)))(jnp.arange(tokens)).T


def begin(
    config: VLMConfig,
    params,
    prompts: PromptBatch,
    uniform_BR: Float[Array, "B R"],
    sampling: RowSampling,
    *,
    vocabulary: Vocabulary,
) -> Decoding:
    """The first token of a response to each prompt, drawn as the row's own settings say; `go_on` draws those after it.

    Token t of a row is drawn by `uniform_BR[:, t]`, a random number in [0, 1): a row's answer is a function of its own prompt,
    numbers and settings, and of the shapes.
    """
    features = None if prompts.images is None else vlm.encode_images(config, params, prompts.images)
    decoding = vlm.for_decoding(config, params)
    return _begin(Draws(config, decoding, prompts, uniform_BR, vocabulary, _by_row(sampling)), prompts, features)


def go_on(
    config: VLMConfig,
    params,
    prompts: PromptBatch,
    uniform_BR: Float[Array, "B R"],
    sampling: RowSampling,
    state: Decoding,
    until: Int[Array, ""],
    stopped_B: Bool[Array, "B"],
    *,
    vocabulary: Vocabulary,
) -> Decoding:
    """Draw on, until every row has ended or has `until` tokens, at most R. Its programs are the same with pictures and without.

    Args:
        prompts: those of `begin`, without their images.
        stopped_B: rows that end here, for a reason that is not in their tokens.
    """
    decoding = vlm.for_decoding(config, params)
    step = _step(Draws(config, decoding, prompts, uniform_BR, vocabulary, _by_row(sampling)))
    last = jnp.minimum(until, uniform_BR.shape[1])
    state = state._replace(alive_B=state.alive_B & ~stopped_B)
    return jax.lax.while_loop(lambda state: (state.step < last) & jnp.any(state.alive_B), step, state)


def _by_row(sampling: RowSampling) -> Rule:
    temperature_B1 = jnp.where(sampling.temperature_B > 0, sampling.temperature_B, 1.0)[:, None]
    return Rule(temperature_B1, functools.partial(choose_by_row, sampling=sampling), sampling.length_B)


def _answer(draws: Draws, questions: PromptBatch, features: Features | None, early_exit: bool) -> Rollout:
    """One part of `generate`. `questions`, `features`: as in `_begin`."""
    prompts, R = draws.prompts, draws.uniform_BR.shape[1]

    def unfinished(state: Decoding):
        return (state.step < R) & (jnp.any(state.alive_B) | (not early_exit))

    step = _step(draws)
    state = _begin(draws, questions, features)
    state = jax.lax.while_loop(unfinished, step, state)

    features = repeat(features, len(state.alive_B) // len(questions.tokens_BP))
    return as_rollout(prompts, state.tokens_BR, state.mask_BR, state.logp_BR, ~state.alive_B, features)


def as_rollout(prompts: PromptBatch, tokens_BR, mask_BR, logp_BR, ended_B, features: Features | None) -> Rollout:
    """Prompts, each with its answer."""
    positions_BR = after(prompts)[:, None] + jnp.cumsum(mask_BR, axis=1, dtype=jnp.int32) - 1
    return Rollout(
        tokens_BT=jnp.concatenate([prompts.tokens_BP, tokens_BR], axis=1),
        positions_BT=jnp.concatenate([prompts.positions_BP, everywhere(positions_BR, prompts.positions_BP)], axis=1),
        mask_BT=jnp.concatenate([prompts.mask_BP, mask_BR], axis=1),
        response_mask_BR=mask_BR,
        logp_BR=logp_BR,
        ended_B=ended_B,
        features=features,
    )


def _begin(draws: Draws, questions: PromptBatch, features: Features | None) -> Decoding:
    """The prompts read and the first token of every answer drawn.

    Args:
        questions: each prompt once, with as many neighbours among the answers as each other.
        features: of its pictures.
    """
    config, (B, R), (count, P) = draws.config, draws.uniform_BR.shape, questions.tokens_BP.shape
    dtype, prompts = jnp.dtype(config.dtype), None
    cache = vlm.init_cache(config, count, P + R if count == B else P, dtype)
    hidden_B1D, cache = read_prompts(config, draws.params, questions, features, cache)
    if count < B:
        prompts, cache = cache, vlm.init_cache(config, B, R, dtype)
    state = Decoding(
        step=jnp.int32(0),
        tokens_BR=jnp.full((B, R), draws.vocabulary.pad, jnp.int32),
        mask_BR=jnp.zeros((B, R), bool),
        logp_BR=jnp.zeros((B, R), jnp.float32),
        alive_B=jnp.ones(B, bool),
        cache=cache,
        prompts=prompts,
    )
    return _draw(draws, state, repeat(hidden_B1D, B // count)[:, 0])


def _step(draws: Draws) -> Callable[[Decoding], Decoding]:
    """The body of a loop over tokens: feed the token drawn last, draw the next."""
    prompts, next_B = draws.prompts, after(draws.prompts)

    def step(state: Decoding) -> Decoding:
        t = state.step - 1
        hidden_B1D, cache = vlm.apply(
            draws.config,
            draws.params,
            jax.lax.dynamic_slice_in_dim(state.tokens_BR, t, 1, axis=1),
            everywhere(next_B + t, prompts.positions_BP)[:, None],
            jax.lax.dynamic_slice_in_dim(state.mask_BR, t, 1, axis=1),
            cache=state.cache,
            prompts=state.prompts,
        )
        return _draw(draws, state._replace(cache=cache), hidden_B1D[:, 0])

    return step


def _draw(draws: Draws, state: Decoding, hidden_BD) -> Decoding:
    """Record token `state.step`, drawn from the hidden state before it, in the rows that have not ended."""
    t, alive_B = state.step, state.alive_B
    drawn_B, logp_B, ends_B = next_token(draws, hidden_BD, draws.uniform_BR[:, t])
    goes_on_B = alive_B & ~ends_B
    return state._replace(
        step=t + 1,
        tokens_BR=state.tokens_BR.at[:, t].set(jnp.where(alive_B, drawn_B, draws.vocabulary.pad)),
        mask_BR=state.mask_BR.at[:, t].set(alive_B),
        logp_BR=state.logp_BR.at[:, t].set(jnp.where(alive_B, logp_B, 0.0)),
        alive_B=goes_on_B if draws.rule.length_B is None else goes_on_B & (t + 1 < draws.rule.length_B),
    )


def next_token(draws: Draws, hidden_BD, uniform_B) -> tuple[Int[Array, "B"], Float[Array, "B"], Bool[Array, "B"]]:
    """(token, its log-probability, whether it ends an answer), drawn from the hidden state before it."""
    never_V = draws.vocabulary.never_V(draws.config.text.vocab)
    every_BV = vlm.logits(draws.config, draws.params, hidden_BD)
    logp_BV = logprob.log_softmax(every_BV, temperature=draws.rule.temperature, never_V=never_V)
    drawn_B = draws.rule.choose(uniform_B, logp_BV)
    logp_B = jnp.take_along_axis(logp_BV, drawn_B[:, None], axis=1)[:, 0]
    eos_E = jnp.asarray(draws.vocabulary.eos, jnp.int32)
    return drawn_B, logp_B, jnp.any(drawn_B[:, None] == eos_E[None, :], axis=1)


def read_prompts(config: VLMConfig, params, prompts: PromptBatch, features: Features | None, cache: vlm.Cache):
    """The hidden state after the prompt, and the cache with it. Activated adapters act on its last tokens alone, one by one."""
    asked = prompts[:3]
    if not config.activation:
        return vlm.apply(config, params, *asked, features, cache, read=1)
    P, suffix = prompts.tokens_BP.shape[1], len(config.activation)
    shared = (x_BP[:, : P - suffix] for x_BP in asked)
    start = vlm.apply(config, lora.bare(params), *shared, features, cache, read=1)

    def step(index, carry):
        token = (jax.lax.dynamic_slice_in_dim(x_BP, index, 1, axis=1) for x_BP in asked)
        return vlm.apply(config, params, *token, cache=carry[1])

    return jax.lax.fori_loop(P - suffix, P, step, start)


def after(prompts: PromptBatch) -> Int[Array, "B"]:
    """The position of the first response token: one more than the largest of its prompt, on whichever axis that is."""
    largest_BP = prompts.positions_BP if prompts.positions_BP.ndim == 2 else jnp.max(prompts.positions_BP, axis=2)
    return jnp.max(jnp.where(prompts.mask_BP, largest_BP, -1), axis=1) + 1


def everywhere(positions, like_BP):
    """Positions of text: the same on all axes, where there are any."""
    return positions if like_BP.ndim == 2 else jnp.repeat(positions[..., None], 3, axis=-1)
