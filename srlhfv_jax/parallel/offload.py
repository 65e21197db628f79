"""Trees that wait in the host's memory while no function on the devices reads them.

Pinned memory: leaves go over by DMA, in the shards that they have. A leaf that is where it should be already is not copied.
"""

from typing import Any, TypeVar

import jax

Tree = TypeVar("Tree")

HOST, DEVICE = "pinned_host", "device"


def to_host(tree: Tree) -> Tree:
    """Move a tree to the host. On return the devices have let go of it, unless somebody else holds it."""
    return jax.block_until_ready(_move(tree, HOST))


def to_device(tree: Tree) -> Tree:
    return _move(tree, DEVICE)


def rest(trees: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """The trees with those of `names` in the host's memory."""
    return {name: to_host(tree) if name in names else tree for name, tree in trees.items()}


def _move(tree: Any, kind: str) -> Any:
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind(kind)), tree)
