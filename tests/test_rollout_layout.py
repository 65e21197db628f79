"""The policy's weights in a rollout: whole over fsdp, the same numbers, no weight gathered for each token; and what waits meanwhile."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest
import tiny_hf
from tiny_stages import numbers, same_numbers, settings
from tiny_vlm import CONFIG, VOCABULARY, backbone, prompts

from srlhfv_jax.config import LoraConfig, MeshConfig, PPOLagConfig, ScoresConfig
from srlhfv_jax.models import attention, lora
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.plan import hlo, memory as plan, shapes as plan_shapes
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.ppo_lag.iteration import Iteration
from srlhfv_jax.ppo_lag.load import load_models
from srlhfv_jax.rollout import layout
from srlhfv_jax.rollout.generate import generate
from srlhfv_jax.supervised import scores
from srlhfv_jax.training import loop

R = 5
LORA = LoraConfig(rank=2, alpha=4.5, targets=("text/layers/.*_proj",), int8=False, activated=False)


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


def test_key_value_heads_that_tensor_does_not_divide_are_on_every_device_that_asks_them():
    """Two of them on four devices: the cache has each twice, and nothing of its size goes over a link for a token."""
    one, four = (make_mesh(MeshConfig(data=1, fsdp=1, tensor=size)) for size in (1, 4))
    assert (CONFIG.text.heads, CONFIG.text.kv_heads) == (4, 2)
    alone, _ = compiled(one, rules.place(policy(), one))
    split, text = compiled(four, rules.place(policy(), four))
    np.testing.assert_array_equal(alone.tokens_BT, split.tokens_BT)
    np.testing.assert_allclose(alone.logp_BR, split.logp_BR, atol=1e-5)
    with jax.set_mesh(four):
        assert [attention.copies(heads, kv_heads) for heads, kv_heads in ((4, 2), (8, 4), (4, 1), (12, 6), (6, 2))] == [
            2,
            1,
            4,
            2,
            1,
        ]
    keys = alone.tokens_BT.size * CONFIG.text.head_dim  # of one head in the cache
    assert max(gathered_in_the_loop(text), default=0) < keys


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


def constrained(folder, kind: str, offload: str = "none") -> PPOLagConfig:
    changes = {"mesh.fsdp": 4, "mesh.tensor": 2, "data.batch_size": 8, "rollout.layout": kind, "rollout.offload": offload}
    changes |= {"validation.path": str(folder / "pku.jsonl")}
    paths = {"policy": str(folder / "llama"), "scorer": str(folder / "scores")}
    return settings(PPOLagConfig, "ppo_lag", **paths, **where(folder), **changes)


@pytest.fixture(scope="module")
def gathered(text, tmp_path_factory):
    return logged(constrained(text, "gathered"), tmp_path_factory.mktemp("gathered"))


def logged(wanted: PPOLagConfig, workdir) -> list[dict]:
    ppo_lag.run(wanted, workdir)
    return numbers(workdir)


@pytest.mark.slow
def test_a_run_has_the_same_numbers_in_either_layout(text, gathered, tmp_path):
    assert len(gathered) >= 2 and any("validation.cost" in line for line in gathered)
    same_numbers(logged(constrained(text, "training"), tmp_path), gathered, 1e-4)


@pytest.mark.slow
def test_a_run_whose_idle_trees_wait_on_the_host_has_the_same_numbers_stopped_and_started_again(
    text, gathered, tmp_path, monkeypatch
):
    wanted = constrained(text, "gathered", offload="idle")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "run", functools.partial(loop.run, stop=lambda step: step == 1))
        with pytest.raises(loop.Preempted):
            ppo_lag.run(wanted, tmp_path)
    same_numbers(logged(wanted, tmp_path), gathered, 1e-4)


@pytest.mark.parametrize(
    "kind, waiting", [("none", set()), ("optimizer", {"opt_state"}), ("idle", {"opt_state", "critic", "scorer", "reference"})]
)
def test_what_waits_in_the_hosts_memory(text, mesh, kind, waiting):
    wanted = constrained(text, "gathered", offload=kind)
    with jax.set_mesh(mesh):
        models = load_models(wanted, mesh)
        iteration = Iteration(wanted, models, mesh, VOCABULARY)
        state = iteration.initial_state()
    trees = state.params | models.frozen | {"opt_state": state.opt_state}
    assert {name for name, tree in trees.items() if "pinned_host" in memories(tree)} == waiting
    assert all(len(memories(tree)) == 1 for tree in trees.values())
    assert memories(iteration.on_devices((trees, state))) == {"device"}


def memories(tree) -> set[str]:
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


@pytest.mark.slow
def test_a_plan_counts_the_copy_while_the_rollout_reads_it(text, mesh):
    """Compiled for CPUs here: four of fsdp hold the policy once as shards, and once more in whole while it samples."""
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    kinds = (("gathered", "none"), ("training", "none"), ("gathered", "idle"))
    found = [plan.of(constrained(text, *kind), config, mesh, 1 << 40) for kind in kinds]
    names = [[one.name for one in planned.compiled] for planned in found]
    functions = ["generate", "score", "update"]
    assert names == [["reshard", *functions], functions, ["load", "reshard", *functions]]
    assert found[0].state == found[1].state == found[2].state
    state, (reshard, generated, scored, updated) = found[0].state, found[0].compiled
    assert reshard.beside + reshard.arguments == sum(state.values())
    split = plan_shapes.backbone(config, "float32", mesh)
    split |= {"vision": {name: part for name, part in split["vision"].items() if name != "unused"}}  # jit takes no such argument
    whole = layout.target(split, mesh, "bfloat16")
    more = plan_shapes.size(whole) - plan_shapes.size(split)
    assert more > 0 and generated.arguments == found[1].compiled[0].arguments + more
    kernels = [leaf for path, leaf in rules.leaves(whole) if path.endswith("_proj/kernel")]
    assert reshard.work.collectives()["all-gather"].sent >= 3 / 4 * plan_shapes.size(
        kernels
    )  # of four parts, three are elsewhere
    load, resharding, generating, scoring, updating = found[2].compiled
    assert load.peak == sum(state[name] for name in ("policy", "critic", "reference", "scorer"))
    assert resharding.beside + resharding.arguments == state["policy"] and resharding.arguments == reshard.arguments
    assert generated.beside - generating.beside == sum(state.values()) - state["policy"]
    assert scored.beside - scoring.beside == state["policy.optimizer"] + state["critic.optimizer"]
    assert updated.beside - updating.beside == state["reference"] + state["scorer"]
    assert [one.kv_copies for one in found] == [1, 1, 1]
    assert [one.peak for one in (generated, scored, updated)] == [one.peak for one in (generating, scoring, updating)]
