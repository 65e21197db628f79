"""Sums, counts and scales under a mask: the one place where masks meet numbers.

Every loss returns pairs (sum, count) made here. Dividing them is the caller's last step, after microbatches and hosts are added.
"""

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Mean = tuple[Float[Array, ""], Float[Array, ""]]  # (sum, count); the mean is sum / count

# Below this share of the root mean square a spread is rounding noise of a constant.
SPREAD_TOLERANCE = 1e-5


class Loss(NamedTuple):
    """A loss, and beside it what to log; all pairs (sum, count). A loss of several terms has dicts of their sums and counts."""

    sum: Float[Array, ""] | dict[str, Float[Array, ""]]
    count: Float[Array, ""] | dict[str, Float[Array, ""]]
    metrics: dict[str, Mean]
    rows: Any = ()  # what it found out about each row on the way, for a later loss


def token_mean(x_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"]) -> Mean:
    """(Σ_bt m x, Σ_bt m): every token weighs the same."""
    _check(x_BR, mask_BR)
    return jnp.sum(keep(x_BR, mask_BR)), jnp.sum(mask_BR, dtype=jnp.float32)


def sequence_mean(x_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"]) -> Mean:
    """(Σ_b [Σ_t m x / Σ_t m], rows with a token): every sequence weighs the same (safe-rlhf's `masked_mean`)."""
    _check(x_BR, mask_BR)
    tokens_B = jnp.sum(mask_BR, axis=1, dtype=jnp.float32)
    mean_B = jnp.sum(keep(x_BR, mask_BR), axis=1) / jnp.maximum(tokens_B, 1.0)
    return jnp.sum(mean_B), jnp.sum(tokens_B > 0, dtype=jnp.float32)


def reduce(x_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"], reduction: str) -> Mean:
    """`token_mean` for "token", `sequence_mean` for "sequence"; for "fixed" (Σ_bt m x, B R): no mean, a constant divides."""
    if reduction == "token":
        return token_mean(x_BR, mask_BR)
    if reduction == "sequence":
        return sequence_mean(x_BR, mask_BR)
    if reduction == "fixed":
        return token_mean(x_BR, mask_BR)[0], jnp.float32(mask_BR.size)
    raise ValueError(f"reduction must be 'token', 'sequence' or 'fixed', got {reduction!r}")


def weighted_mean(x_B: Float[Array, "B"], weight_B: Float[Array, "B"]) -> Mean:
    """(Σ_b w x, Σ_b w); a row of weight 0 takes no part, whatever its x is."""
    chex.assert_rank([x_B, weight_B], 1)
    chex.assert_equal_shape([x_B, weight_B])
    chex.assert_type([x_B, weight_B], float)
    return jnp.sum(weight_B * keep(x_B, weight_B > 0)), jnp.sum(weight_B)


def keep(x: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, "..."]:
    """x where the mask is true, else 0, in float32. A selection, not a product: 0 * inf is NaN."""
    return jnp.where(mask, x.astype(jnp.float32), 0.0)


def scale(x: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, "..."]:
    """x / std(x) over the true positions, WITHOUT removing the mean; 0 off the mask.

    Only the size of a stream is normalised. Its zero stays where it is, because for a cost zero is the line between safe and
    unsafe, and for an advantage the line between better and worse than expected. A constant stream has no size to divide by and
    is returned as it is.
    """
    chex.assert_equal_shape([x, mask])
    chex.assert_type([x, mask], [float, bool])
    x = keep(x, mask)
    count = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
    std = jnp.sqrt(jnp.sum(keep(x - jnp.sum(x) / count, mask) ** 2) / count)
    rms = jnp.sqrt(jnp.sum(x**2) / count)
    return x / jnp.where(std > SPREAD_TOLERANCE * rms, std, 1.0)


def _check(x_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"]) -> None:
    chex.assert_rank([x_BR, mask_BR], 2)
    chex.assert_equal_shape([x_BR, mask_BR])
    chex.assert_type([x_BR, mask_BR], [float, bool])
