"""Minibatches: the same rows on any mesh, each row once, and none of them goes to another device."""

import jax
import numpy as np
import pytest

from srlhfv_jax.config import MeshConfig
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.plan import hlo
from srlhfv_jax.plan.count import KINDS
from srlhfv_jax.ppo_lag import minibatches

KEY = jax.random.key(3)


def drawn(mesh: tuple[int, int, int], rows: int, count: int, key=KEY) -> np.ndarray:
    """[minibatches, rows of each], counted from the first row of the batch."""
    with jax.set_mesh(make_mesh(MeshConfig(*mesh))):
        rows_MSn = np.asarray(jax.jit(minibatches.draw, static_argnums=(1, 2))(key, rows, count))
    shards = rows_MSn.shape[1]
    assert (rows_MSn < rows // shards).all()
    return (rows_MSn + (rows // shards * np.arange(shards))[None, :, None]).reshape(count, -1)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_mesh_deals_each_row_once_and_puts_the_same_rows_together(count):
    alone = np.sort(drawn((1, 1, 1), 32, count))
    assert sorted(alone.ravel()) == list(range(32)) and alone.shape == (count, 32 // count)
    for mesh in ((1, 2, 1), (1, 8, 1), (2, 2, 2)):
        np.testing.assert_array_equal(np.sort(drawn(mesh, 32, count)), alone)


def test_another_epoch_deals_other_rows():
    one, other = (np.sort(drawn((1, 1, 1), 32, 2, jax.random.fold_in(KEY, epoch))) for epoch in (0, 1))
    assert 0 < np.isin(one[0], other[0]).sum() < 16


def test_rows_of_one_device_and_one_minibatch_come_in_the_order_of_one_permutation():
    """Runs of one minibatch on one device repeat, to the bit, what they were before rows were dealt."""
    np.testing.assert_array_equal(drawn((1, 1, 1), 24, 1)[0], jax.random.permutation(KEY, 24))


def test_a_minibatch_is_taken_where_its_rows_lie(eight_devices):
    batch = {"features": np.random.default_rng(0).normal(size=(16, 5, 3)).astype(np.float32), "length": np.arange(16)}
    with jax.set_mesh(eight_devices):
        placed = hosts.global_batch(batch, eight_devices)
        take = jax.jit(lambda batch: minibatches.take(batch, minibatches.draw(KEY, 16, 2)[1]))
        found, text = take(placed), take.lower(placed).compile().as_text()
    rows = drawn((2, 2, 2), 16, 2)[1]
    jax.tree.map(lambda x, whole: np.testing.assert_array_equal(x, whole[rows]), found, batch)
    assert all(x.sharding.is_equivalent_to(hosts.row_sharding(eight_devices), x.ndim) for x in found.values())
    kinds = [one.kind.removesuffix("-start") for computation in hlo.parse(text)[0].values() for one in computation.values()]
    assert not set(kinds) & set(KINDS)
