"""Which rows of a batch each host loads: those of the row shards that its devices hold, wherever the axes of the mesh lie."""

import numpy as np
import pytest
from jax.sharding import Mesh

from srlhfv_jax.config import MeshConfig
from srlhfv_jax.configs.recipes import RECIPES
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import AXES, make_mesh, row_shards
from srlhfv_jax.plan import topology


def holders(mesh: Mesh) -> list[set[int]]:
    """The hosts that hold each row shard."""
    groups = mesh.devices.reshape(row_shards(mesh), mesh.shape["tensor"])
    return [{device.process_index for device in group} for group in groups]


def check(mesh: Mesh, rows: int) -> None:
    """A host loads the rows of its shards, ascending, and none twice; with each shard taken from one of its hosts, all rows are
    there, each once."""
    shards, held = np.arange(rows).reshape(row_shards(mesh), -1), holders(mesh)
    loaded = {host: hosts.own_rows(rows, mesh, host).tolist() for host in set().union(*held)}
    for host, found in loaded.items():
        assert found == [row for shard, by in zip(shards, held) if host in by for row in shard.tolist()]
    once = [row for shard, by in zip(shards, held) for row in loaded[min(by)] if row in shard]
    assert once == list(range(rows))


@pytest.mark.parametrize("name", RECIPES)
def test_the_hosts_of_a_recipe_load_each_row_once_counting_shared_shards_once(name):
    recipe = RECIPES[name]
    mesh = make_mesh(MeshConfig(*recipe.mesh), topology.devices(recipe.topology))
    for rows in (recipe.answers, recipe.step_rows):
        check(mesh, rows)


def test_the_tensor_axis_of_some_recipes_crosses_hosts():
    crossing = {
        name
        for name, recipe in RECIPES.items()
        if max(map(len, holders(make_mesh(MeshConfig(*recipe.mesh), topology.devices(recipe.topology))))) > 1
    }
    assert {"llava15_7b_separate", "qwen25vl_72b_adapters"} <= crossing


@pytest.mark.parametrize("sizes", [(2, 2, 4), (4, 2, 2), (16, 1, 1), (1, 1, 16), (5, 1, 3)])
def test_whatever_the_order_of_the_devices_a_host_loads_the_rows_of_its_shards(sizes):
    """Shards of one host far apart, and shards of two or more hosts beside whole ones."""
    devices = np.array(topology.devices("v5e:4x4"))
    for seed in range(3):
        grid = np.random.default_rng(seed).permutation(devices)[: np.prod(sizes)].reshape(sizes)
        check(Mesh(grid, AXES), 3 * sizes[0] * sizes[1])


def test_rows_that_do_not_divide_over_the_shards_are_refused():
    mesh = make_mesh(MeshConfig(4, 1, 4), topology.devices("v5e:4x4"))
    for rows in (6, 0):
        with pytest.raises(UserError, match=f"batch of {rows} rows must be a positive multiple of 4"):
            hosts.own_rows(rows, mesh, 0)
