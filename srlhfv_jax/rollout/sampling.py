"""Draws of one token from log-probabilities. `generate` calls this once per position; nothing here knows about models."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Sampling(NamedTuple):
    """Static choices of a sampler. PPO rollouts use temperature alone: top_k and top_p make the recorded log-probs off-policy."""

    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0  # 1 = off

    @property
    def logp_temperature(self) -> float:
        """The temperature of recorded log-probabilities: greedy answers are recorded at 1."""
        return self.temperature or 1.0


class RowSampling(NamedTuple):
    """Choices of a sampler that differ between the rows of a batch. Arrays: other values compile nothing anew."""

    temperature_B: Float[Array, "B"]  # 0 = greedy
    top_p_B: Float[Array, "B"]  # 1 = off, 0 = greedy
    length_B: Int[Array, "B"]  # most tokens of each answer, the end-of-sequence token included; at least 1


def choose(uniform_B: Float[Array, "B"], logp_BV: Float[Array, "B V"], sampling: Sampling) -> Int[Array, "B"]:
    """Draw one token per row, by one random number of [0, 1) each; greedy when the temperature is 0.

    top_k keeps the k most likely tokens, then top_p the smallest set whose probability reaches p (Holtzman et al., arXiv
    1904.09751); ties at the border are kept.
    """
    chex.assert_rank(logp_BV, 2)
    if sampling.temperature == 0:
        return jnp.argmax(logp_BV, axis=-1).astype(jnp.int32)
    if sampling.top_k:
        kth_B1 = jax.lax.top_k(logp_BV, sampling.top_k)[0][:, -1:]
        logp_BV = jnp.where(logp_BV >= kth_B1, logp_BV, -jnp.inf)
    if sampling.top_p < 1:
        sorted_BV = jnp.sort(logp_BV, axis=-1, descending=True)
        probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
        border_B1 = jnp.min(jnp.where(before_BV < sampling.top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logp_BV = jnp.where(logp_BV >= border_B1, logp_BV, -jnp.inf)
    return draw(uniform_B, jnp.exp(logp_BV))


def choose_by_row(uniform_B: Float[Array, "B"], logp_BV: Float[Array, "B V"], sampling: RowSampling) -> Int[Array, "B"]:
    """`choose`, each row as its own settings say. A row's token does not depend on those of its neighbours."""
    chex.assert_rank([logp_BV, sampling.temperature_B, sampling.top_p_B], [2, 1, 1])
    cut_B = sampling.top_p_B < 1

    def nucleus(logp_BV: Float[Array, "B V"]) -> Float[Array, "B V"]:
        sorted_BV = jnp.sort(logp_BV, axis=-1, descending=True)
        probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
        inside_BV = (before_BV < sampling.top_p_B[:, None]).at[:, 0].set(True)
        border_B1 = jnp.min(jnp.where(inside_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(cut_B[:, None] & (logp_BV < border_B1), -jnp.inf, logp_BV)

    kept_BV = jax.lax.cond(jnp.any(cut_B), nucleus, lambda logp_BV: logp_BV, logp_BV)  # sorting is dear
    greedy_B = jnp.argmax(logp_BV, axis=-1).astype(jnp.int32)
    return jnp.where(sampling.temperature_B > 0, draw(uniform_B, jnp.exp(kept_BV)), greedy_B)


BLOCK = 128  # neighbouring tokens whose probabilities are added first
BELOW_ONE = 1 - 2.0**-22  # rounding must not carry a target past the last token
LEAST = 2.0**-24  # half the step between random numbers: 0 would fall on the first token with any weight, however little


def draw(uniform_B: Float[Array, "B"], weight_BV: Float[Array, "B V"]) -> Int[Array, "B"]:
    """The token at which the running sum of the weights passes `uniform` times their total, found in two levels: block, then
    token.

    One random number a row; the Gumbel trick of `jax.random.categorical` draws V of them
    (on two cores 4 times as long for 128 rows of 245 tokens, 13 times for 16 of 4,096).
    """
    B, V = weight_BV.shape
    blocks = jnp.pad(weight_BV, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
    mass = jnp.sum(blocks, axis=2)  # of each block; from here on two axes, rows and blocks or tokens
    running = jnp.cumsum(mass, axis=1)
    target_B1 = jnp.maximum(uniform_B, LEAST)[:, None] * running[:, -1:] * BELOW_ONE
    block_B1 = jnp.argmax(running > target_B1, axis=1, keepdims=True)
    before_B1 = jnp.take_along_axis(running - mass, block_B1, axis=1)
    within = jnp.cumsum(jnp.take_along_axis(blocks, block_B1[:, :, None], axis=1)[:, 0], axis=1)
    target_B1 = jnp.clip(target_B1 - before_B1, 0.0, within[:, -1:] * BELOW_ONE)
    return (block_B1[:, 0] * BLOCK + jnp.argmax(within > target_B1, axis=1)).astype(jnp.int32)
