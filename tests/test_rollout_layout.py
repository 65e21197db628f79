"""The policy's weights in a rollout: whole over fsdp, the same numbers, and no weight gathered for each token."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest
import tiny_hf
from tiny_stages import settings
from tiny_vlm import CONFIG, VOCABULARY, backbone, prompts

from srlhfv_jax.config import LoraConfig, MeshConfig, PPOLagConfig, ScoresConfig
from srlhfv_jax.models import lora
from srlhfv_jax.parallel import hlo, hosts, rules
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.rollout import layout
from srlhfv_jax.rollout.generate import generate
from srlhfv_jax.stages import plan, plan_shapes, ppo_lag, scores

R = 5
LORA = LoraConfig(rank=2, alpha=4.5, targets=("text/layers/.*_proj",), int8=False)


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))


def policy() -> dict:
    """A backbone with an adapter over it."""
    params = backbone()
    return lora.overlay(params, lora.init(LORA, params, jax.random.key(3)))


def axes(tree) -> set:
    return {axis for leaf in jax.tree.leaves(tree) for axis in leaf.sharding.spec}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_split_over_fsdp_any_more_and_only_what_the_model_casts_is_cast(mesh, dtype):
    placed = rules.place(policy(), mesh)
    assert axes(placed) == {None, "fsdp", "tensor"}
    moved = layout.gather(placed, layout.target(placed, mesh, dtype))
    assert axes(moved) == {None, "tensor"}
    for (path, before), (_, after) in zip(rules.leaves(placed), rules.leaves(moved), strict=True):
        norm_or_scale = path.endswith(("scale", "bias"))
        assert after.dtype == ("float32" if norm_or_scale else dtype), path
        np.testing.assert_array_equal(before.astype(after.dtype), after, err_msg=path)


def test_a_leaf_that_lies_right_is_not_copied(one_device):
    placed = rules.place(policy(), one_device)
    gathered = layout.gather(placed, layout.target(placed, one_device, "float32"))
    assert all(a is b for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(gathered), strict=True))
    assert layout.moves(placed, layout.target(placed, one_device, "bfloat16", "training")) == []


def compiled(mesh, params, dtype="float32"):
    """Generate as jitted for these weights: (its call, its optimized program)."""
    config = dataclasses.replace(CONFIG, dtype=dtype)
    batch = hosts.global_batch(jax.tree.map(np.asarray, prompts(rows=8)), mesh)
    with jax.set_mesh(mesh):
        run = jax.jit(functools.partial(generate, config, response_length=R, vocabulary=VOCABULARY))
        return run(params, batch, jax.random.key(2)), run.lower(params, batch, jax.random.key(2)).compile().as_text()


def gathered_in_the_loop(text: str) -> list[int]:
    """Elements of every all-gather in any loop of the program: over tokens, and over the layers within it."""
    computations, main = hlo.parse(text)

    def within(name: str) -> list[hlo.Instruction]:
        ones = list(computations[name].values())
        return ones + [inner for one in ones for called in one.called for inner in within(called)]

    loops = [within(one.called[0]) + within(one.called[1]) for one in computations[main].values() if one.kind == "while"]
    assert loops
    return [math.prod(one.arrays[-1].dims) for loop in loops for one in loop if one.kind.startswith("all-gather")]


def test_no_weight_is_gathered_for_a_token_and_the_tokens_are_the_same():
    """With rows and weights over fsdp alone, whole weights leave nothing at all to gather."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8, tensor=1))
    split = rules.place(policy(), mesh)
    whole = layout.gather(split, layout.target(split, mesh, "float32"))
    (before, split_text), (after, whole_text) = compiled(mesh, split), compiled(mesh, whole)
    kernels = {math.prod(leaf.shape[1:]) for path, leaf in rules.leaves(split) if path.endswith("proj/kernel")}
    assert kernels & set(gathered_in_the_loop(split_text))
    assert gathered_in_the_loop(whole_text) == []
    np.testing.assert_array_equal(before.tokens_BT, after.tokens_BT)
    np.testing.assert_allclose(before.logp_BR, after.logp_BR, atol=1e-5)


def test_casting_once_gives_the_numbers_of_casting_at_every_use(one_device):
    """bfloat16 over float32 weights, and over weights that were cast before: not one bit differs."""
    split = rules.place(policy(), one_device)
    cast = layout.gather(split, layout.target(split, one_device, "bfloat16"))
    (before, _), (after, _) = compiled(one_device, split, "bfloat16"), compiled(one_device, cast, "bfloat16")
    np.testing.assert_array_equal(before.tokens_BT, after.tokens_BT)
    np.testing.assert_array_equal(before.logp_BR, after.logp_BR)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A random Llama, scores trained a step from it, and rows of PKU-SafeRLHF."""
    folder = tmp_path_factory.mktemp("text")
    tiny_hf.save(folder / "llama", tiny_hf.llama_config())
    row = {
        "prompt": "w7 w8 w9",
        "response_0": "w5 w6",
        "response_1": "w8 w9 w10",
        "better_response_id": 0,
        "safer_response_id": 1,
    }
    row |= {f"is_response_{k}_safe": bool(k) for k in (0, 1)} | {f"response_{k}_severity_level": 2 - 2 * k for k in (0, 1)}
    rows = [row | {"prompt": f"w{7 + i} w{9 + i}"} for i in range(8)]
    (folder / "pku.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores.run(settings(ScoresConfig, "scores", init=str(folder / "llama"), **where(folder)), folder / "scores")
    return folder


def where(folder) -> dict:
    return {"data.path": str(folder / "pku.jsonl"), "data.split": "", "data.response_length": 6}


def constrained(folder, kind: str) -> PPOLagConfig:
    changes = {"mesh.fsdp": 4, "mesh.tensor": 2, "data.batch_size": 8, "rollout.layout": kind}
    changes |= {"validation.path": str(folder / "pku.jsonl")}
    paths = {"policy": str(folder / "llama"), "scorer": str(folder / "scores")}
    return settings(PPOLagConfig, "ppo_lag", **paths, **where(folder), **changes)


def test_a_run_has_the_same_numbers_in_either_layout(text, tmp_path):
    logs = []
    for kind in ("gathered", "training"):
        ppo_lag.run(constrained(text, kind), tmp_path / kind)
        lines = map(json.loads, (tmp_path / kind / "metrics.jsonl").read_text().splitlines())
        logs.append([{name: value for name, value in line.items() if "second" not in name} for line in lines])
    assert len(logs[0]) >= 2 and any("validation.cost" in line for line in logs[0])
    for one, other in zip(*logs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


def test_a_plan_counts_the_copy_while_the_rollout_reads_it(text, mesh):
    """Compiled for CPUs here: four of fsdp hold the policy once as shards, and once more in whole while it samples."""
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    found = {kind: plan.of(constrained(text, kind), config, mesh, 1 << 40) for kind in ("gathered", "training")}
    names = {kind: [one.name for one in planned.compiled] for kind, planned in found.items()}
    assert names == {"gathered": ["reshard", "generate", "score", "update"], "training": ["generate", "score", "update"]}
    assert found["gathered"].state == found["training"].state
    reshard, generated = found["gathered"].compiled[:2]
    assert reshard.beside + reshard.arguments == sum(found["gathered"].state.values())
    split = plan_shapes.backbone(config, "float32", mesh)
    split |= {"vision": {name: part for name, part in split["vision"].items() if name != "unused"}}  # jit takes no such argument
    whole = layout.target(split, mesh, "bfloat16")
    more = plan_shapes.size(whole) - plan_shapes.size(split)
    assert more > 0 and generated.arguments == found["training"].compiled[0].arguments + more
    kernels = [leaf for path, leaf in rules.leaves(whole) if path.endswith("_proj/kernel")]
    assert reshard.work.collectives()["all-gather"].sent >= 3 / 4 * plan_shapes.size(
        kernels
    )  # of four parts, three are elsewhere
