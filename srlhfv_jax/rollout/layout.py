"""The policy's weights as a rollout wants them: whole over `fsdp`, split over `tensor`, in the dtype they are multiplied in.

Decoding reads every weight once for every token. In the training layout that is an all-gather over `fsdp` for each of R tokens;
here it is one before the first. The copy lives as long as the rollout. Leaves move one by one: a program that moved the whole
tree would hold much of it twice.
"""

import functools
import re
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from srlhfv_jax.parallel import rules

Tree = TypeVar("Tree")

CAST = re.compile(r"(kernel|embedding|lora_[ab])$")  # wherever the model uses these, it casts them first; not so norms


def target(tree: Tree, mesh: Mesh, dtype: str, kind: str = "gathered") -> Tree:
    """Shape, dtype and sharding of every leaf of a backbone in a rollout that computes in `dtype`.

    Args:
        tree: arrays, or ShapeDtypeStructs in their shards.
        kind: "gathered", or "training": everything as it is.
    """
    if kind == "training":
        return rules.abstract(tree)

    def leaf(path: tuple[Any, ...], x: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
        cast = CAST.search(rules.path_text(path)) and jnp.issubdtype(x.dtype, jnp.floating)  # not numbers of eight bits
        return jax.ShapeDtypeStruct(x.shape, dtype if cast else x.dtype, sharding=place)

    return jax.tree.map_with_path(leaf, tree, rules.shardings(tree, mesh, rules.ROLLOUT))


def gather(tree: Tree, wanted: Tree) -> Tree:
    """The tree as `target` describes it. A leaf that is so already is not copied; the others are copies."""
    return jax.tree.map(lambda x, want: x if _stays(x, want) else mover(want.dtype, want.sharding)(x), tree, wanted)


def moves(tree: Any, wanted: Any) -> list[tuple[Any, jax.ShapeDtypeStruct]]:
    """The leaves that `gather` copies, each with what it becomes."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(wanted), strict=True)
    return [(x, want) for x, want in pairs if not _stays(x, want)]


def _stays(x: Any, want: jax.ShapeDtypeStruct) -> bool:
    return x.dtype == want.dtype and x.sharding.is_equivalent_to(want.sharding, x.ndim)


@functools.cache
def mover(dtype: Any, place: NamedSharding) -> Any:
    """The jitted function that moves one leaf, compiled once for each shape. Cast first: half as much goes over the links."""

    def reshard(x: jax.Array) -> jax.Array:
        return x.astype(dtype)

    return jax.jit(reshard, out_shardings=place)
