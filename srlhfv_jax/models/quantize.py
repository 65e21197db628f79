"""Frozen kernels in eight bits: a whole number from -127 to 127 for each weight, and a float32 scale for each output.

    text/layers/mlp/up_proj    kernel [L, out, in] int8    kernel_scale [L, out]

A dense layer multiplies by the whole numbers, which bfloat16 holds exactly, and scales what comes out (models/layers.py). Nothing
trains them: an adapter lies over such a backbone as over any other. Symmetric, by the largest absolute weight of each output
(the vector-wise scheme of Dettmers et al., arXiv 2208.07339, of weights alone). Embeddings, head and vision tower stay the same.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp

from srlhfv_jax.models.layers import INPUT_FIRST

KERNELS = re.compile(r"text/layers/.*_proj$")
LARGEST = 127


def int8(params: dict[str, Any], *, release: bool = False) -> dict[str, Any]:
    """The tree with the kernels of the decoder's layers in eight bits.

    Args:
        release: free each kernel as soon as its numbers are there, so that the tree is never in memory twice.
    """
    return _visit(params, "", release)


def _visit(tree: dict[str, Any], path: str, release: bool) -> dict[str, Any]:
    if KERNELS.search(path) and "kernel" in tree:
        numbers = _rounded(tree["kernel"], path.rpartition("/")[2] in INPUT_FIRST)
        if release:
            jax.block_until_ready(numbers)
            tree["kernel"].delete()
        return tree | numbers
    below = path + "/" if path else ""
    return {name: _visit(part, below + name, release) if isinstance(part, dict) else part for name, part in tree.items()}


@functools.partial(jax.jit, static_argnums=1)
def _rounded(kernel: jax.Array, input_first: bool) -> dict[str, jax.Array]:
    """int8 kernel and per-output scale of one dense layer, stacked over the decoder's layers."""
    inputs = 1 if input_first else 2
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=inputs, keepdims=True) / LARGEST
    scale = jnp.where(scale == 0, 1.0, scale)
    return {"kernel": jnp.round(kernel / scale).astype(jnp.int8), "kernel_scale": jnp.squeeze(scale, inputs)}
