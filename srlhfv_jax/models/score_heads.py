"""Scalar heads on a backbone's hidden states: reward, cost, and the two critics. One dot product each, in float32.

A score head has no bias: it would cancel in every preference. The zero of the cost is learned through its sign terms. The heads of
critics have one, for what they predict may lie anywhere.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from srlhfv_jax.losses import products
from srlhfv_jax.models.config import VLMConfig


def init(config: VLMConfig, names: tuple[str, ...], key: Array) -> dict[str, dict[str, Array]]:
    """Normal with standard deviation 1 / sqrt(D + 1), so that scores start with unit size; one key per head."""
    D = config.text.width
    keys = jax.random.split(key, len(names))
    return {name: {"kernel": jax.random.normal(own, (D,)) * (D + 1) ** -0.5} for name, own in zip(names, keys)}


def critic(scorer: dict) -> dict:
    """A tree with score heads as one with critics' heads: they have a bias of 0."""
    return scorer | {"heads": {name: head | {"bias": jnp.zeros((), jnp.float32)} for name, head in scorer["heads"].items()}}


def scores(heads: dict[str, dict[str, Array]], hidden_BTD: Float[Array, "B T D"]) -> dict[str, Float[Array, "B T"]]:
    """Every head at every position, from one forward pass."""
    return {name: products.float32(hidden_BTD, head["kernel"]) + head.get("bias", 0.0) for name, head in heads.items()}
