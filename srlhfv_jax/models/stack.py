"""Run a stack of equal layers whose parameters are stacked on axis 0: one scan, so compile time does not grow with depth.

`unroll` trades compile time for the copies a scan makes of its slices; a whole stack unrolled may also be given as one tree per
layer (`split`), and its layers know their own index, so that they may differ. `remat` says what the
backward pass computes again instead of keeping: "none"; "dots", everything but products with kernels and fused attention; "layer",
everything, for about a third more work. On CPU it needs `parallel/host_cpu.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from srlhfv_jax.parallel import order

Carry = TypeVar("Carry")
FUSED = ("pallas_call", "dot_product_attention_fwd_wrapper")  # forward passes of models/kernels.py, by their JAX primitives


def _products(primitive, *inputs, **params):
    return primitive.name in FUSED or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *inputs, **params)


KEPT = {"dots": _products, "layer": jax.checkpoint_policies.nothing_saveable}


def run(layer: Callable[[Carry, Any, Any], Carry], params, carry: Carry, *, unroll: int, remat: str) -> Carry:
    """Apply `layer(carry, its own parameters, its index)` once for each slice of `params`. Unrolled, the index is an int."""
    return measured(lambda *given: (layer(*given), None), params, carry, unroll=unroll, remat=remat)[0]


def measured(
    layer: Callable[[Carry, Any, Any], tuple[Carry, Any]], params, carry: Carry, *, unroll: int, remat: str
) -> tuple[Carry, Any]:
    """`run` with layers that also return a pytree of arrays each: all of them, stacked on axis 0."""
    parts = split(params, unroll)
    if isinstance(parts, tuple):
        stacked = params if parts is not params and order.on_cpu() else None
        outputs = []
        for index, part in enumerate(parts):

            def run_layer(carry, part, stacked, index=index):  # bound here: `jax.checkpoint` would make a traced number of it
                if stacked is not None:
                    part = _cut_after(carry, part, stacked, index)
                return layer(carry, part, index)

            # Forward pass and recomputation must not be merged; in a scan they are different loops and cannot be.
            carry, own = (run_layer if remat == "none" else jax.checkpoint(run_layer, policy=KEPT[remat]))(carry, part, stacked)
            outputs.append(own)
        return carry, jax.tree.map(lambda *every: jnp.stack(every), *outputs)
    if remat != "none":
        layer = jax.checkpoint(layer, prevent_cse=False, policy=KEPT[remat])

    def step(carry, slice_):
        part, index = slice_
        return layer(carry, part, index)

    indices = jnp.arange(depth(params), dtype=jnp.int32)
    return jax.lax.scan(step, carry, (params, indices), unroll=unroll)


def _cut_after(carry: Carry, part, stacked, index: int):
    """`part`, cut out of the stack no earlier than `carry` is there, and anew where a backward pass computes a layer again.

    A slice is a copy, and of slices that wait for nothing all lie beside the stack at once. The gradient goes by `part`, as `split`
    wants it.
    """
    stacked, _ = order.barrier_on_cpu(jax.lax.stop_gradient((stacked, carry)))
    return _cut(part, stacked, index)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cut(part, stacked, index: int):
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def _cut_forward(part, stacked, index: int):
    return _cut(part, stacked, index), None


def _cut_backward(index: int, _, d_part):
    return d_part, None


_cut.defvjp(_cut_forward, _cut_backward)


def depth(params) -> int:
    """Number of layers of a stack, split or not."""
    return len(params) if isinstance(params, tuple) else jax.tree.leaves(params)[0].shape[0]


def unrolled(params, unroll: int) -> bool:
    """Whether layers run one by one and know their index, instead of in a scan."""
    return isinstance(params, tuple) or not 0 < unroll < depth(params)


def split(params, unroll: int):
    """One tree per layer where the whole stack is unrolled; otherwise, and if that was done before, `params` as they are.

    The gradient of `lax.split` is one concatenate; that of indexing is a padded sum over the whole stack.
    """
    if isinstance(params, tuple) or not unrolled(params, unroll):
        return params
    leaves, structure = jax.tree.flatten(params)
    count = depth(params)
    parts = [jax.lax.split(leaf, (1,) * count) for leaf in leaves]
    return tuple(jax.tree.unflatten(structure, [p[i].reshape(p[i].shape[1:]) for p in parts]) for i in range(count))
