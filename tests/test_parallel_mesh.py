"""Mesh, placement by rules, batches over hosts; and that none of it changes a number."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training as tiny
from commands import COMPILER
from jax.sharding import AxisType, PartitionSpec as P

from srlhfv_jax import quiet
from srlhfv_jax.batches import Images
from srlhfv_jax.config import MeshConfig, OptimizerConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.models import score_heads, vlm
from srlhfv_jax.models.config import RopeConfig, TextConfig, VisionConfig, VLMConfig
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.parallel.mesh import check_tensor_axis, describe, make_mesh, row_shards
from srlhfv_jax.runs.run import describe_parameters
from srlhfv_jax.training import optimizer, state

MODEL = VLMConfig(
    family="llava",
    text=TextConfig(
        64, 16, 24, 2, 4, 2, 4, 1e-5, RopeConfig(1e4), tied_head=False, qkv_bias=True, output_bias=True, mlp_bias=True
    ),
    vision=VisionConfig(image_size=8, patch=4, width=8, mlp=16, layers=3, heads=2, norm_eps=1e-5, activation="gelu"),
    image_token=3,
)


def shapes():
    """Everything a trained tree can hold, as shapes."""
    return jax.eval_shape(
        lambda key: {"backbone": vlm.init(MODEL, key), "heads": score_heads.init(MODEL, ("reward", "cost"), key)},
        jax.random.key(0),
    )


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((-1, 2, 1), (4, 2, 1)), ((1, -1, 1), (1, 8, 1)), ((2, 2, 2), (2, 2, 2)), ((1, 1, -1), (1, 1, 8)), ((1, 2, 1), (1, 2, 1))],
)
def test_minus_one_takes_the_devices_that_are_left(sizes, shape):
    mesh = make_mesh(MeshConfig(*sizes))
    assert tuple(mesh.shape.values()) == shape and set(mesh.axis_types) == {AxisType.Auto}
    assert f"on {mesh.size} of 8 cpu devices" in describe(mesh)


def test_a_tensor_axis_that_does_not_divide_the_heads_is_refused_with_those_that_do():
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=8))
    check_tensor_axis(32, mesh)
    with pytest.raises(UserError, match=r"config.mesh.tensor 8 does not divide the 28 query heads .* one of 1, 2, 4$"):
        check_tensor_axis(28, mesh)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 3, 1), r"mesh \(data=3, fsdp=3, tensor=1\) needs 9 devices, there are 8"),
        ((3, -1, 1), r"8 devices cannot be divided by 3"),
        ((-1, -1, 1), r"only one of data, fsdp, tensor may be -1"),
        ((1, 0, 1), r"config.mesh.fsdp must be a positive number or -1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(*sizes))


def test_a_batch_that_does_not_divide_names_both_numbers(eight_devices):
    assert row_shards(eight_devices) == 4
    with pytest.raises(UserError, match=r"batch of 30 rows must be a positive multiple of 4 \(data=2 x fsdp=2 of the mesh\)"):
        hosts.global_batch({"x": np.zeros((30, 2))}, eight_devices)


def test_rows_go_out_over_the_mesh_and_come_back(eight_devices):
    rows = {"x": np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32), "none": None}
    batch = hosts.global_batch(rows, eight_devices)
    assert batch["x"].sharding.spec == P(("data", "fsdp")) and batch["x"].addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(hosts.to_host(batch)["x"], rows["x"])


def test_every_parameter_and_every_moment_has_a_place(eight_devices):
    """Scores and optimizer states included; the moments lie like their parameters."""
    params = shapes()
    places = dict(rules.leaves(rules.specs(params, eight_devices)))
    kernels = [path for path, leaf in rules.leaves(params) if "layers" in path and path.endswith("kernel")]
    assert kernels and all(places[path] == P(None, "tensor", "fsdp") for path in kernels)
    assert places["heads/cost/kernel"] == P() and places["backbone/text/embed/embedding"] == P("tensor", "fsdp")

    transform, _ = tiny.update_of()
    placed = rules.place(tiny.initial(), eight_devices)
    moments = dict(rules.leaves(state.init_optimizer(transform, placed, eight_devices)))
    embedding = placed["text"]["embed"]["embedding"]
    assert embedding.sharding.spec == P("tensor", "fsdp") and embedding.addressable_shards[0].data.shape == (3, 2)
    found = [leaf for path, leaf in moments.items() if path.endswith("mu/text/embed/embedding")]
    assert len(found) == 1 and found[0].sharding == embedding.sharding


def test_the_moments_of_muon_are_split_as_the_kernels_they_belong_to(eight_devices):
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes())
    settings = OptimizerConfig(**(tiny.OPTIMIZER.__dict__ | {"algorithm": "muon", "freeze": ()}))
    transform = optimizer.make(settings, params, 10)
    placed = rules.place(params, eight_devices)
    moments = rules.leaves(state.init_optimizer(transform, placed, eight_devices))
    kernels = {
        f"{leaf.shape[1]}x{leaf.shape[2]}": leaf for path, leaf in rules.leaves(placed) if re.search("layers/.*kernel$", path)
    }
    found = {path.split("/")[-1]: leaf for path, leaf in moments if path.split("/")[-1] in kernels}
    assert found.keys() == kernels.keys()
    assert all(found[shape].sharding == kernel.sharding for shape, kernel in kernels.items())


def test_placing_changes_no_value(eight_devices):
    placed = rules.place(tiny.initial(), eight_devices)
    jax.tree.map(np.testing.assert_array_equal, hosts.to_host(placed), tiny.initial())


def test_an_axis_that_does_not_divide_is_dropped_and_shown(eight_devices):
    odd = {"text": {"embed": {"embedding": jax.ShapeDtypeStruct((7, 4), jnp.float32)}}}
    assert rules.specs(odd, eight_devices)["text"]["embed"]["embedding"] == P(None, "fsdp")
    assert "7x4  [-, fsdp]  (tensor does not divide)" in rules.table(odd, eight_devices)


def test_a_tree_is_told_in_one_line_with_its_share_of_each_device(eight_devices):
    odd = {"text": {"embed": {"embedding": jnp.zeros((7, 4)), "norm": {"scale": jnp.zeros(4, jnp.bfloat16)}}}}
    tree = odd | {"projector": {"linear_1": {"kernel": jnp.zeros((1024, 1024))}}}
    line = rules.summary(tree, eight_devices)  # (tensor, fsdp) = (2, 2) split the kernel in four
    assert line == (
        "1.05 M parameters in 3 leaves, 4.0 MiB, 1.0 MiB on each device; leaves with an axis that does not divide and stays whole: 1"
    )


def test_the_leaves_of_a_tree_are_listed_only_where_everything_is_asked_for(eight_devices, capsys, monkeypatch):
    tree = {"text": {"norm": {"scale": jnp.zeros(4)}}}
    monkeypatch.delenv(quiet.VERBOSE, raising=False)
    describe_parameters("policy", tree, eight_devices)
    monkeypatch.setenv(quiet.VERBOSE, "1")
    describe_parameters("policy", tree, eight_devices)
    short, long, leaf = "".join(capsys.readouterr()).splitlines()
    assert short == long and short.startswith("policy: 0.00 M parameters in 1 leaves") and "text/norm/scale" in leaf


def test_a_leaf_without_a_rule_is_an_error(eight_devices):
    with pytest.raises(UserError, match=r"no sharding rule matches the parameter text/adapter \(4, 4\)"):
        rules.specs({"text": {"adapter": jnp.zeros((4, 4))}}, eight_devices)
    assert rules.specs({"step": jnp.int32(0)}, eight_devices) == {"step": P()}  # scalars need none


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)])
def test_a_sharded_run_equals_a_run_on_one_device(tmp_path, one_device, sizes):
    """Ten steps with microbatches, decay, clipping and a frozen leaf; on (2, 2, 2) with one row per device."""
    mesh = make_mesh(MeshConfig(*sizes))
    one, _ = tiny.train(tmp_path / "one", one_device, every=0)
    many, _ = tiny.train(tmp_path / "many", mesh, every=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), many, one)


def test_the_model_gives_the_same_hidden_states_sharded_and_whole(one_device, eight_devices):
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32) / 3, shapes()["backbone"])
    tokens_BT = np.random.default_rng(1).integers(4, 64, (4, 8))
    tokens_BT[:2, 1:5] = MODEL.image_token  # two rows without an image
    mask_BT = np.ones(tokens_BT.shape, bool)
    positions_BT = np.broadcast_to(np.arange(8), tokens_BT.shape)
    patches = np.random.default_rng(0).normal(size=(4, 4, MODEL.vision.patch_values)).astype(np.float32)
    images = Images(patches, None, None, None)

    @jax.jit
    def forward(params, tokens_BT, positions_BT, mask_BT, images):
        features = vlm.encode_images(MODEL, params, images)
        return vlm.apply(MODEL, params, tokens_BT, positions_BT, mask_BT, features)[0]

    inputs = (tokens_BT, positions_BT, mask_BT, images)
    outputs = [
        hosts.to_host(forward(rules.place(params, mesh), *hosts.global_batch(inputs, mesh)))
        for mesh in (one_device, eight_devices)
    ]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, one_device):
    """Each process reads half of the rows; they save and log as one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def pair(*arguments):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "XLA_FLAGS": " ".join(("--xla_force_host_platform_device_count=2", *COMPILER)),
        }
        command = [sys.executable, str(Path(tiny.__file__)), str(tmp_path / "two"), *arguments]
        started = [
            subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(rank)}, stderr=subprocess.PIPE, text=True)
            for rank in (0, 1)
        ]
        return [(process.communicate(timeout=120)[1], process.returncode) for process in started]

    for said, code in pair():
        assert code == 0, said
    tiny.train(tmp_path / "one", one_device)
    one, two = (
        np.asarray([[row.get(name, 0.0) for name in ("step", "loss", "grad_norm", "size")] for row in tiny.rows(tmp_path / name)])
        for name in ("one", "two")
    )
    np.testing.assert_allclose(two, one, rtol=1e-4)
