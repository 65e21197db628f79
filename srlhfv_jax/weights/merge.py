"""Weights between two checkpoints, number by number. Files, tokenizers and cards are the command's (`runs/merge.py`)."""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

Tree = dict[str, Any]


def merge(a: Tree, b: Tree, q: float) -> Tree:
    """(1 - q) a + q b, as P-SACPO merges two policies (Wachi et al., arXiv 2404.11049).

    Computed in float32 and stored in each leaf's own dtype. At q = 0 and q = 1 it is `a` and `b` themselves; a number that both
    share, as those of a frozen tower, stays what it is.

    Args:
        a: arrays; `b` has the same leaves, shapes and dtypes.
        q: from 0 to 1.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    chex.assert_scalar_in(q, 0, 1)
    if q in (0, 1):
        return b if q else a
    return jax.tree.map(lambda one, other: _between(one, other, jnp.float32(1 - q), jnp.float32(q)), a, b)


@jax.jit
def _between(a: jax.Array, b: jax.Array, p: jax.Array, q: jax.Array) -> jax.Array:
    mixed = p * a.astype(jnp.float32) + q * b.astype(jnp.float32)
    return jnp.where(a == b, a, mixed.astype(a.dtype))


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """The first name under which two mappings hold different values, in the order of `a`, with both values; "": they are equal."""
    for name in [*a, *(name for name in b if name not in a)]:
        if name not in a or name not in b or a[name] != b[name]:
            return f"{name} is {a.get(name, 'missing')} and {b.get(name, 'missing')}"
    return ""
