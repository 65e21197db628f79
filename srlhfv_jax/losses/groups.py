"""Advantages without a critic: an answer's score against those of the other answers to its prompt.

    group    A_i = (s_i - mean_j s_j) / std_j s_j         GRPO (arXiv 2402.03300, equation 3); without the division Dr. GRPO
                                                          (arXiv 2503.20783)
    rloo     A_i = s_i - mean_{j != i} s_j                leave one out (Ahmadian et al., arXiv 2402.14740, section 3.3)

With a constraint each stream has its own, and they are mixed afterwards (`lagrangian.combine`): of one mixed score the group would
divide the multiplier out again (arXiv 2602.05863, section 4). Answers to one prompt are neighbours.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from srlhfv_jax.losses import masked


def advantages(score_B: Float[Array, "B"], size: int, *, kind: str, scale: str) -> Float[Array, "B"]:
    """The advantage of each answer in its group; exactly 0 in a group whose scores are equal. Float32.

    Args:
        size: answers of a group, at least 2; it divides B.
        kind: "group" or "rloo".
        scale: "std": a group is divided by its standard deviation, with size - 1 under the root; "none".
    """
    chex.assert_rank(score_B, 1)
    chex.assert_type(score_B, float)
    score_NG = score_B.astype(jnp.float32).reshape(-1, size)
    centred_NG = score_NG - jnp.mean(score_NG, axis=1, keepdims=True)
    centred_NG = jnp.where(_equal(score_NG), 0.0, centred_NG)
    if kind == "rloo":
        return (centred_NG * (size / (size - 1))).reshape(-1)
    if kind != "group":
        raise ValueError(f"kind must be 'group' or 'rloo', got {kind!r}")
    if scale == "none":
        return centred_NG.reshape(-1)
    if scale != "std":
        raise ValueError(f"scale must be 'std' or 'none', got {scale!r}")
    std_N1 = jnp.sqrt(jnp.sum(centred_NG**2, axis=1, keepdims=True) / (size - 1))
    return (centred_NG / jnp.where(std_N1 > 0, std_N1, 1.0)).reshape(-1)


def is_degenerate(advantages_by_stream: list[Float[Array, "B"]], size: int) -> Bool[Array, "N"]:
    """Groups that teach nothing: every advantage is 0, in all streams."""
    zero_BS = jnp.stack([adv_B == 0 for adv_B in advantages_by_stream], axis=1)
    return jnp.all(zero_BS.reshape(-1, size * zero_BS.shape[1]), axis=1)


def _equal(score_NG: Float[Array, "N G"]) -> Bool[Array, "N 1"]:
    """Whether a group's scores differ by rounding alone."""
    spread_N1 = jnp.max(score_NG, axis=1, keepdims=True) - jnp.min(score_NG, axis=1, keepdims=True)
    return spread_N1 <= masked.SPREAD_TOLERANCE * jnp.max(jnp.abs(score_NG), axis=1, keepdims=True)
