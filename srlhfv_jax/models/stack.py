"""Run a stack of equal layers whose parameters are stacked on axis 0: one scan, so compile time does not grow with depth.

`unroll` trades compile time for the copies a scan makes of its slices; 0 unrolls the whole stack. `remat` says what the
backward pass computes again instead of keeping: "none"; "dots", everything but matrix products, which on CPU costs nothing
(less memory is touched) and halves the memory; "layer", everything, for about a third more work.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")
KEPT = {"dots": jax.checkpoint_policies.dots_saveable, "layer": jax.checkpoint_policies.nothing_saveable}


def run(layer: Callable[[Carry, Any, Any], Carry], params, carry: Carry, *, unroll: int, remat: str) -> Carry:
    """Apply `layer(carry, its own parameters, its index)` once for each slice of `params`."""
    depth = jax.tree.leaves(params)[0].shape[0]
    unrolled = unroll == 0 or unroll >= depth
    if remat != "none":
        # In a scan the forward pass and the recomputation are different loops and cannot be merged; unrolled they must not be.
        layer = jax.checkpoint(layer, prevent_cse=unrolled, policy=KEPT[remat])
    if unrolled:
        for index, own in enumerate(_unstack(params, depth)):
            carry = layer(carry, own, index)
        return carry

    def step(carry, slice_):
        own, index = slice_
        return layer(carry, own, index), None

    return jax.lax.scan(step, carry, (params, jnp.arange(depth, dtype=jnp.int32)), unroll=unroll)[0]


def _unstack(params, depth: int) -> list:
    """One tree per layer. The gradient of `split` is one concatenate; that of indexing is a padded sum over the whole stack."""
    leaves, structure = jax.tree.flatten(params)
    split = [jax.lax.split(leaf, (1,) * depth) for leaf in leaves]
    return [jax.tree.unflatten(structure, [parts[i].reshape(parts[i].shape[1:]) for parts in split]) for i in range(depth)]
