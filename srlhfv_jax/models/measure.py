"""Activations of the decoder, reduced inside the layer pass: `vlm.measure` gives each layer's taps to a function and stacks what it
returns, so that what lies in memory is one layer's taps at a time, and never [L, B, T, F].

A unit is an input channel of an output projection: of the MLP's (a neuron), or of the attention's (a channel of a head).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


class Taps(NamedTuple):
    """Activations of one layer at every position, in their own dtype."""

    heads_BTHh: Float[Array, "B T H h"]  # input of the attention's output projection
    mlp_BTF: Float[Array, "B T F"]  # input of the MLP's down projection
    x_BTD: Float[Array, "B T D"]  # the residual stream after the layer


Measure = Callable[[Taps], Any]  # the taps of one layer to a small pytree of arrays


class Moments(NamedTuple):
    """Moments of the channels of some tokens: how many these are, their mean, and the sum of squares about it. float32 on a device.

    About the mean, so that a channel far from 0 keeps its variance.
    """

    count: Float[Array, "*layers"]
    mean: Float[Array, "..."]
    squares: Float[Array, "..."]


class Units(NamedTuple):
    """Moments of the units of one layer, or of all stacked."""

    heads: Moments  # channels [H, h]
    mlp: Moments  # channels [F]


def moments(values: Float[Array, "B T *channels"], mask_BT: Bool[Array, "B T"]) -> Moments:
    """Moments of every channel over the true positions of the mask; zeros where it has none."""
    mask = mask_BT.reshape(*mask_BT.shape, *(1,) * (values.ndim - 2))
    values, count = values.astype(jnp.float32), jnp.sum(mask_BT, dtype=jnp.float32)
    mean = jnp.sum(jnp.where(mask, values, 0), axis=(0, 1)) / jnp.maximum(count, 1)
    return Moments(count, mean, jnp.sum(jnp.where(mask, jnp.square(values - mean[None, None]), 0), axis=(0, 1)))


def of_units(mask_BT: Bool[Array, "B T"]) -> Callable[[Taps], Units]:
    """A measure: the moments of every unit over the true positions."""
    return lambda taps: Units(moments(taps.heads_BTHh, mask_BT), moments(taps.mlp_BTF, mask_BT))


def joined(a: Moments, b: Moments) -> Moments:
    """Moments of the tokens of both, in float64 on the host (Chan, Golub and LeVeque, 1979, equation 2.1).

    Args:
        a, b: moments of tokens that differ, of any number of layers.
    """
    (count_a, mean_a, squares_a), (count_b, mean_b, squares_b) = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), m) for m in (a, b)
    )
    count, channels = count_a + count_b, (...,) + (None,) * (mean_a.ndim - count_a.ndim)
    share = (count_b / np.maximum(count, 1))[channels]
    apart = mean_b - mean_a
    return Moments(count, mean_a + share * apart, squares_a + squares_b + share * count_a[channels] * np.square(apart))


def variance(of: Moments) -> Float[np.ndarray, "..."]:
    """Mean square distance from the mean, over all tokens; float64, 0 without tokens."""
    squares = np.asarray(of.squares, np.float64)
    count = np.asarray(of.count, np.float64)
    return squares / np.maximum(count, 1)[(...,) + (None,) * (squares.ndim - count.ndim)]
