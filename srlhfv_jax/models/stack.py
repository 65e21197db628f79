"""Run a stack of equal layers whose parameters are stacked on axis 0: one scan, so compile time does not grow with depth.

`unroll` trades compile time for speed: 0 unrolls the whole stack, and the backward pass then keeps each layer's activations where they
were written instead of copying them into and out of stacked buffers.
"""

from typing import Any, Callable, TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")


def run(layer: Callable[[Carry, Any, Any], Carry], params, carry: Carry, *, unroll: int, remat: str) -> Carry:
    """Apply `layer(carry, its own parameters, its index)` once for each slice of `params`."""
    depth = jax.tree.leaves(params)[0].shape[0]
    unrolled = unroll == 0 or unroll >= depth
    if remat == "layer":
        # Inside a scan the forward and the recomputation are in different loops and cannot be merged; unrolled they must not be.
        layer = jax.checkpoint(layer, prevent_cse=unrolled)
    if remat == "dots":
        layer = jax.checkpoint(layer, prevent_cse=unrolled, policy=jax.checkpoint_policies.dots_saveable)
    if unrolled:
        for index, own in enumerate(_unstack(params, depth)):
            carry = layer(carry, own, index)
        return carry

    def step(carry, slice_):
        own, index = slice_
        return layer(carry, own, index), None

    return jax.lax.scan(step, carry, (params, jnp.arange(depth, dtype=jnp.int32)), unroll=unroll)[0]


def _unstack(params, depth: int) -> list:
    """One tree per layer. The gradient of `split` is one concatenate; that of indexing would be a padded sum over the whole stack."""
    leaves, structure = jax.tree.flatten(params)
    split = [jax.lax.split(leaf, (1,) * depth) for leaf in leaves]
    return [jax.tree.unflatten(structure, [parts[i].reshape(parts[i].shape[1:]) for parts in split]) for i in range(depth)]
