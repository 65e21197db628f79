"""Minibatches of rows that lie on several devices: drawn so that no row moves to another, and so that they are the same on any mesh."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from srlhfv_jax.parallel import rules
from srlhfv_jax.parallel.mesh import row_shards

Tree = TypeVar("Tree")


def draw(key: Key[Array, ""], rows: int, count: int) -> Int[Array, "count S n"]:
    """Rows of each of `count` minibatches: of each of the S shards of rows the same number, counted from its first row.

    Of every `count` neighbours, which are in one shard, each minibatch gets one, at random. So the mesh decides only in which order
    the rows of a minibatch come, which is random as well and changes nothing but rounding.

    Args:
        rows: of the whole batch, a multiple of S times `count`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards, hands = 1 if mesh.empty else row_shards(mesh), rows // count

    def shuffled(key: Key[Array, ""], many: int, length: int) -> Int[Array, "many length"]:
        return jax.random.permutation(key, jnp.tile(jnp.arange(length)[None], (many, 1)), axis=1, independent=True)

    order = shuffled(key, shards, hands // shards)[..., None]
    dealt = shuffled(jax.random.fold_in(key, 0), hands, count).reshape(shards, -1, count)
    return jnp.moveaxis(count * order + jnp.take_along_axis(dealt, order, axis=1), 2, 0)


def take(batch: Tree, rows: Int[Array, "S n"]) -> Tree:
    """One minibatch, as `draw` says; its rows are split over the devices as those of the batch are."""

    def pick(x: Array) -> Array:
        by_shard = x.reshape(len(rows), -1, *x.shape[1:])
        return jax.vmap(lambda own, picked: own[picked])(by_shard, rows).reshape(-1, *x.shape[1:])

    return rules.keep_rows(jax.tree.map(pick, batch))
