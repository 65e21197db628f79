"""Sample responses in slots: where an answer has ended, the next prompt takes its place, inside one compiled loop.

A loop that answers all prompts at once runs until the longest answer ends, with every other row idle behind its own end, and holds
keys and values of all. Here S rows are decoded at a time, each as far as it is, and the cache is of S rows. The same key gives the
same answers as `generate`: random numbers belong to prompts, not to slots.

Rows are split over devices in blocks; so are slots, and each block of slots answers its own block of prompts. The loop ends when all
have.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from srlhfv_jax.batches import Features, PromptBatch, Rollout
from srlhfv_jax.models import vlm
from srlhfv_jax.models.attention import KV
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import mesh
from srlhfv_jax.parallel.microbatches import over_rows, repeat
from srlhfv_jax.rollout.generate import Draws, Rule, Vocabulary, after, as_rollout, everywhere, next_token, read_prompts, uniforms
from srlhfv_jax.rollout.sampling import Sampling, choose

FILLED = 8  # a turn fills one in so many slots, once they are free: reading one prompt takes nearly as long as reading several


class Answers(NamedTuple):
    """Tokens that have been drawn. Axis D: blocks of rows; N answers in each."""

    tokens_DNR: Int[Array, "D N R"]
    logp_DNR: Float[Array, "D N R"]
    length_DN: Int[Array, "D N"]
    ended_DN: Bool[Array, "D N"]
    begun_DN: Int[Array, "D N"]


class Slots(NamedTuple):
    """Answers that are being drawn, S in each block."""

    step: Int[Array, ""]  # tokens drawn in the loop
    next_D: Int[Array, "D"]  # the first answer that has no slot yet
    row_DS: Int[Array, "D S"]  # the answer in each slot
    drawn_DS: Int[Array, "D S"]  # tokens of it so far
    token_DS: Int[Array, "D S"]  # the last of them
    alive_DS: Bool[Array, "D S"]  # it goes on
    kv: KV  # of D * S rows, prompt and answer
    mask_DST: Bool[Array, "D S T"]
    answers: Answers


def refill(
    config: VLMConfig,
    params,
    prompts: PromptBatch,
    key: Array,
    *,
    slots: int,
    response_length: int,
    vocabulary: Vocabulary,
    sampling: Sampling = Sampling(),
    microbatches: int = 1,
    answers: int = 1,
    length_B: Int[Array, "B"] | None = None,
) -> Rollout:
    """`answers` responses to each prompt, those that `generate` draws with this key, `slots` of them at a time.

    A prompt is read once for all answers to it, which begin together.

    Args:
        slots: a multiple of `answers` on each of the devices that rows are split over.
        microbatches: the pictures pass the tower in so many parts.
        length_B: of each answer, which ends there and nowhere else; None: it ends at an end-of-sequence token.
    """
    R, blocks = response_length, mesh.row_blocks()
    B = answers * len(prompts.tokens_BP)
    features, questions = None, prompts._replace(images=None)
    if prompts.images is not None:
        features = over_rows(functools.partial(vlm.encode_images, config, params), prompts.images, microbatches)
    if length_B is not None:
        vocabulary = vocabulary._replace(eos=())
    rule = Rule(sampling.logp_temperature, functools.partial(choose, sampling=sampling), length_B)
    rows = repeat(questions, answers)
    draws = Draws(config, vlm.for_decoding(config, params), rows, uniforms(key, B, R), vocabulary, rule)
    filled = max(slots // blocks // FILLED // answers, 1) * answers

    def waiting_D(state: Slots) -> Bool[Array, "D"]:
        return state.next_D < B // blocks

    def decodes(state: Slots) -> Bool[Array, ""]:
        free_D = jnp.sum(~state.alive_DS, axis=1)
        return jnp.any(state.alive_DS) & ~jnp.any((free_D >= filled) & waiting_D(state))

    def turn(state: Slots) -> Slots:
        state = _fill(draws, questions, features, filled, answers, state)
        return jax.lax.while_loop(decodes, functools.partial(_decode, draws), state)

    state = _empty(draws, blocks, slots)
    state = jax.lax.while_loop(lambda state: jnp.any(state.alive_DS) | jnp.any(waiting_D(state)), turn, state)
    drawn = Answers(*(x.reshape(B, *x.shape[2:]) for x in state.answers))
    mask_BR = jnp.arange(R)[None] < drawn.length_DN[:, None]
    rollout = as_rollout(rows, drawn.tokens_DNR, mask_BR, drawn.logp_DNR, drawn.ended_DN, repeat(features, answers))
    return rollout._replace(begun_B=drawn.begun_DN)


def occupancy(rollout: Rollout, slots: int) -> Float[Array, ""]:
    """The share of slots with an answer that went on, over the steps of the loop; first tokens come from the prompts."""
    decoded_B = jnp.sum(rollout.response_mask_BR, axis=1) - 1
    return jnp.sum(decoded_B) / jnp.maximum(slots * jnp.max(rollout.begun_B + decoded_B), 1)


def _empty(draws: Draws, blocks: int, slots: int) -> Slots:
    """All slots free, all prompts waiting."""
    (B, R), P = draws.uniform_BR.shape, draws.prompts.tokens_BP.shape[1]
    D, N, S = blocks, B // blocks, slots // blocks
    cache = vlm.init_cache(draws.config, slots, P + R, jnp.dtype(draws.config.dtype))
    zeros = functools.partial(jnp.zeros, dtype=jnp.int32)
    return Slots(
        step=zeros(()),
        next_D=zeros(D),
        row_DS=zeros((D, S)),
        drawn_DS=zeros((D, S)),
        token_DS=zeros((D, S)),
        alive_DS=jnp.zeros((D, S), bool),
        kv=cache.kv,
        mask_DST=cache.mask_BT.reshape(D, S, -1),
        answers=Answers(
            tokens_DNR=jnp.full((D, N, R), draws.vocabulary.pad, jnp.int32),
            logp_DNR=jnp.zeros((D, N, R), jnp.float32),
            length_DN=zeros((D, N)),
            ended_DN=jnp.zeros((D, N), bool),
            begun_DN=zeros((D, N)),
        ),
    )


def _fill(draws: Draws, questions: PromptBatch, features: Features | None, filled: int, answers: int, state: Slots) -> Slots:
    """The next prompts of every block in free slots, and the first token of each answer. Axis M: at most so many slots, `filled`."""
    (D, S), N, config = state.row_DS.shape, state.answers.length_DN.shape[1], draws.config
    free_D = jnp.sum(~state.alive_DS, axis=1)
    number_1M = jnp.arange(filled)[None]
    fits_DM = number_1M < jnp.minimum(free_D // answers * answers, N - state.next_D)[:, None]
    row_DM = jnp.minimum(state.next_D[:, None] + number_1M, N - 1)
    slot_DM = jnp.argsort(state.alive_DS, axis=1, stable=True)[:, :filled]  # free ones first
    slot_DM = jnp.where(fits_DM, slot_DM, S)  # past the last: written nowhere
    prompt_DQ = row_DM[:, ::answers] // answers

    def asked(x_B: Array) -> Array:
        return _rows(x_B.reshape(D, -1, *x_B.shape[1:]), prompt_DQ)

    part = jax.tree.map(asked, questions)
    cache = vlm.init_cache(config, *part.tokens_BP.shape, jnp.dtype(config.dtype))
    hidden_Q1W, cache = read_prompts(config, draws.params, part, jax.tree.map(asked, features), cache)
    done, token_DM, alive_DM = _draw(
        draws, state.answers, row_DM, jnp.zeros_like(row_DM), fits_DM, repeat(hidden_Q1W, answers)[:, 0], state.step
    )
    mask_BP = repeat(cache.mask_BT, answers)
    mask_DMT = jnp.pad(mask_BP, ((0, 0), (0, state.mask_DST.shape[2] - mask_BP.shape[1]))).reshape(D, filled, -1)

    def put(x_DS: Array, new_DM: Array) -> Array:
        return jax.vmap(lambda x_S, slot_M, new_M: x_S.at[slot_M].set(new_M, mode="drop"))(x_DS, slot_DM, new_DM)

    return state._replace(
        next_D=state.next_D + jnp.sum(fits_DM, axis=1),
        row_DS=put(state.row_DS, row_DM),
        drawn_DS=put(state.drawn_DS, jnp.ones_like(row_DM)),
        token_DS=put(state.token_DS, token_DM),
        alive_DS=put(state.alive_DS, alive_DM),
        kv=jax.tree.map(lambda stored, new: _put_prompts(stored, new, slot_DM, answers), state.kv, cache.kv),
        mask_DST=put(state.mask_DST, mask_DMT),
        answers=done,
    )


def _put_prompts(stored: Array, new: Array, slot_DM: Int[Array, "D M"], answers: int) -> Array:
    """Keys or values of prompts [L?, D * M / answers, K, P, h] at the beginning of these slots' [L?, D * S, K, T, h]."""
    axis = stored.ndim - 4  # of rows
    D, P = len(slot_DM), new.shape[-2]
    new = jnp.repeat(new, answers, axis=axis)

    def blocks(x: Array) -> Array:
        return x.reshape(*x.shape[:axis], D, -1, *x.shape[axis + 1 :])

    def put(stored: Array, slot_M: Int[Array, "M"], new: Array) -> Array:
        layers = (slice(None),) * axis
        return stored.at[(*layers, slot_M, slice(None), slice(P))].set(new, mode="drop")

    return jax.vmap(put, (axis, 0, axis), axis)(blocks(stored), slot_DM, blocks(new)).reshape(stored.shape)


def _decode(draws: Draws, state: Slots) -> Slots:
    """Feed the last token of every slot and draw the next, where the answer goes on."""
    D, S = state.row_DS.shape
    prompts, P = draws.prompts, draws.prompts.tokens_BP.shape[1]
    fed_B = (state.drawn_DS - 1).reshape(-1)
    next_B = _rows(after(prompts).reshape(D, -1), state.row_DS) + fed_B
    mask_BT = state.mask_DST.reshape(D * S, -1)
    alive_DS = state.alive_DS
    hidden_B1W, cache = vlm.apply(
        draws.config,
        draws.params,
        state.token_DS.reshape(-1, 1),
        everywhere(next_B, prompts.positions_BP)[:, None],
        alive_DS.reshape(-1, 1),
        cache=vlm.Cache(state.kv, mask_BT, P + fed_B),
    )
    done, token_DS, goes_on_DS = _draw(
        draws, state.answers, state.row_DS, state.drawn_DS, alive_DS, hidden_B1W[:, 0], state.step + 1
    )
    return state._replace(
        step=state.step + 1,
        drawn_DS=state.drawn_DS + alive_DS,
        token_DS=token_DS,
        alive_DS=goes_on_DS,
        kv=cache.kv,
        mask_DST=cache.mask_BT.reshape(D, S, -1),
        answers=done,
    )


def _draw(
    draws: Draws,
    answers: Answers,
    row_DX: Int[Array, "D X"],
    time_DX: Int[Array, "D X"],
    live_DX: Bool[Array, "D X"],
    hidden_BW: Float[Array, "D*X W"],
    step: Int[Array, ""],
) -> tuple[Answers, Int[Array, "D X"], Bool[Array, "D X"]]:
    """Token `time` of these answers by the hidden states before them, recorded where it is live: (answers, tokens, who goes on).

    Args:
        step: of the loop, after this token.
    """
    D, N, R = answers.tokens_DNR.shape
    uniform_B = _rows(draws.uniform_BR.reshape(D, N, R), row_DX)[jnp.arange(row_DX.size), jnp.minimum(time_DX, R - 1).reshape(-1)]
    token_B, logp_B, ends_B = next_token(draws, hidden_BW, uniform_B)
    if draws.rule.length_B is not None:
        ends_B |= time_DX.reshape(-1) + 1 >= _rows(draws.rule.length_B.reshape(D, N), row_DX)
    token_DX, logp_DX, ends_DX = (x_B.reshape(row_DX.shape) for x_B in (token_B, logp_B, ends_B))
    place_DX = jnp.where(live_DX, row_DX, N)  # past the last: written nowhere

    def record(x_DN: Array, value_DX: Array, *at: Array) -> Array:
        return jax.vmap(lambda x_N, value_X, *place: x_N.at[place].set(value_X, mode="drop"))(x_DN, value_DX, place_DX, *at)

    done = Answers(
        tokens_DNR=record(answers.tokens_DNR, token_DX, time_DX),
        logp_DNR=record(answers.logp_DNR, logp_DX, time_DX),
        length_DN=record(answers.length_DN, time_DX + 1),
        ended_DN=record(answers.ended_DN, ends_DX),
        begun_DN=record(answers.begun_DN, jnp.broadcast_to(step, row_DX.shape) - time_DX),
    )
    return done, token_DX, live_DX & ~ends_DX & (time_DX + 1 < R)


def _rows(x_DN: Array, row_DX: Int[Array, "D X"]) -> Array:
    """These rows of every block, blocks one behind the other."""
    return jax.vmap(lambda x_N, row_X: x_N[row_X])(x_DN, row_DX).reshape(row_DX.size, *x_DN.shape[2:])
