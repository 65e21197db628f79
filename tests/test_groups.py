"""Advantages of answers in the groups of their prompts: one prompt's prefill for all of them, and no critics anywhere."""

import dataclasses
import functools
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_ppo import models, rolled, static, step
from tiny_stages import adapters_and_prompts, numbers, settings
from tiny_vlm import CONFIG, VOCABULARY, prompts

from srlhfv_jax.batches import GroupAdvantages
from srlhfv_jax.config import PPOLagConfig, unread
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.losses import groups, masked, ppo
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.parallel.microbatches import repeat
from srlhfv_jax.plan import ppo_lag as planned
from srlhfv_jax.ppo_lag import advantages, check, roles, run as ppo_lag, validate
from srlhfv_jax.rollout.generate import generate

GROUPS = {"ppo.advantage": "group", "ppo.group_size": 4}
KL = np.float32([0.1, 1.3, 0.4, 2.5, 0.7, 0.2, 0.9, 1.6, 3.1, 0.5, 0.3, 0.8])
SCORES = np.float32([0.3, -1.7, 2.25, 0.4, 0.9, 0.9, 0.9, 0.9, -0.5, 1.5, -0.5, 1.5])


def in_groups(score_B=SCORES, size=4, kind="group", scale="std") -> np.ndarray:
    return np.asarray(groups.advantages(jnp.asarray(score_B), size, kind=kind, scale=scale))


def test_a_group_is_centred_and_divided_by_its_deviation():
    expected = [(row - row.mean()) / (row.std(ddof=1) or 1) for row in SCORES.reshape(3, 4)]
    np.testing.assert_allclose(in_groups(), np.concatenate(expected), rtol=1e-5)
    centred = [row - row.mean() for row in SCORES.reshape(3, 4)]
    np.testing.assert_allclose(in_groups(scale="none"), np.concatenate(centred), rtol=1e-5)


def test_two_answers_are_worth_their_difference_when_one_is_left_out():
    pairs = SCORES.reshape(-1, 2)
    difference = pairs[:, 0] - pairs[:, 1]
    np.testing.assert_allclose(in_groups(size=2, kind="rloo"), np.stack([difference, -difference], 1).ravel(), rtol=1e-5)


def test_each_answer_is_compared_with_the_mean_of_the_others():
    expected = [row - (row.sum() - row) / 3 for row in SCORES.reshape(3, 4)]
    np.testing.assert_allclose(in_groups(kind="rloo"), np.concatenate(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ("group", "rloo"))
@pytest.mark.parametrize("scale", ("std", "none"))
@pytest.mark.parametrize("value", (0.0, 0.1, -37.3))
def test_equal_scores_are_worth_nothing_up_to_rounding(kind, scale, value):
    noise = value * np.float32([1, 1 + 1e-7, 1 - 1e-7, 1])
    assert (in_groups(np.float32(noise), kind=kind, scale=scale) == 0).all()


def test_a_stream_in_other_units_is_worth_the_same():
    np.testing.assert_allclose(in_groups(7.3 * SCORES), in_groups(), rtol=1e-5)
    np.testing.assert_allclose(in_groups(SCORES - 11.5), in_groups(), rtol=1e-4)


def test_a_group_teaches_nothing_where_it_is_equal_in_both_streams():
    reward_B, cost_B = in_groups(), in_groups(np.float32([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 2, 1, 2, 1]))
    assert groups.is_degenerate([jnp.asarray(reward_B), jnp.asarray(cost_B)], 4).tolist() == [False, True, False]
    shares = advantages.group_metrics(GroupAdvantages(jnp.asarray(reward_B), {"cost": jnp.asarray(cost_B)}, jnp.zeros(12)), 4)
    expected = {"equal_groups": 1 / 3, "reward_equal_groups": 1 / 3, "cost_equal_groups": 2 / 3}
    for name, share in expected.items():
        assert float(shares[name]) == pytest.approx(share)


def test_without_a_multiplier_the_cost_has_no_say_and_with_one_the_streams_are_normalised_first():
    mask_BR = jnp.arange(5)[None] < jnp.asarray([5, 2, 3, 1] * 3)[:, None]
    ppo_settings = static(**GROUPS).settings.ppo
    both = advantages.in_groups(jnp.asarray(SCORES), {"cost": jnp.asarray(-100 * SCORES[::-1])}, jnp.asarray(KL), ppo_settings)
    plain_BR = advantages.combine_groups(both, mask_BR, {"cost": jnp.float32(0)}, 0.0, ppo_settings)
    np.testing.assert_allclose(plain_BR, np.where(mask_BR, in_groups()[:, None], 0), rtol=1e-5)
    mixed_BR = advantages.combine_groups(both, mask_BR, {"cost": jnp.float32(1.5)}, 0.0, ppo_settings)
    expected_B = (in_groups() - 1.5 * in_groups(-SCORES[::-1])) / 2.5
    np.testing.assert_allclose(mixed_BR, np.where(mask_BR, expected_B[:, None], 0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lam", (0.0, 1.5, 1e6))
@pytest.mark.parametrize("units", (1.0, 40.0))
def test_the_strength_of_the_kl_depends_neither_on_the_multiplier_nor_on_the_scores_deviation(lam, units):
    ppo_settings, mask_BR = static(**GROUPS).settings.ppo, jnp.ones((12, 1), bool)
    both = advantages.in_groups(
        jnp.asarray(units * SCORES), {"cost": jnp.asarray(units * SCORES[::-1])}, jnp.asarray(KL), ppo_settings
    )
    without, held = (
        advantages.combine_groups(both, mask_BR, {"cost": jnp.float32(lam)}, beta, ppo_settings) for beta in (0.0, 0.3)
    )
    np.testing.assert_allclose((without - held)[:, 0], 0.3 * in_groups(KL, scale="none"), rtol=1e-4, atol=1e-6)


def test_answers_that_are_all_safe_have_no_cost_advantage_whatever_their_kl():
    both = advantages.in_groups(jnp.asarray(SCORES), {"cost": jnp.zeros(12)}, jnp.asarray(KL), static(**GROUPS).settings.ppo)
    assert (both.costs_B["cost"] == 0).all() and (both.kl_B != 0).all()


def test_kl_as_a_loss_is_the_k3_of_each_token_and_never_negative():
    logp_BR, ref_BR = jnp.asarray([[-0.7, -2.1, -1.3]]), jnp.asarray([[-0.9, -1.4, -jnp.inf]])
    mask_BR = jnp.asarray([[True, True, False]])
    total, count = ppo.kl(logp_BR, ref_BR, mask_BR, reduction="token")
    expected = sum(np.exp(d) - 1 - d for d in (-0.2, 0.7))
    assert float(total) == pytest.approx(expected, rel=1e-5) and float(count) == 2
    assert float(ppo.kl(logp_BR, logp_BR, mask_BR, reduction="token")[0]) == 0


def test_a_sum_over_a_fixed_length_gives_each_token_the_same_weight():
    x_BR, mask_BR = jnp.asarray([[1.5, 2.5, 9.0], [0.25, 9.0, 9.0]]), jnp.asarray([[True, True, False], [True, False, False]])
    assert [float(x) for x in masked.reduce(x_BR, mask_BR, "fixed")] == [4.25, 6.0]


def local(text):
    """The second layer sees four tokens, fewer than a prompt and its answer have."""
    return dataclasses.replace(text, window=4, local_layers=(1,))


def three_positions(text):
    return dataclasses.replace(text, rope=dataclasses.replace(text.rope, sections=(1, 1)))


KINDS = {
    "plain": CONFIG,
    "local layers": dataclasses.replace(CONFIG, text=local(CONFIG.text)),
    "M-RoPE": dataclasses.replace(CONFIG, text=three_positions(CONFIG.text)),
    "activated": dataclasses.replace(CONFIG, activation=(5, 6)),
}


def questions(kind: str):
    batch = prompts(rows=4)
    if kind != "M-RoPE":
        return batch
    time_BP, row_BP = batch.positions_BP, batch.positions_BP // 2
    return batch._replace(positions_BP=jnp.stack([time_BP, row_BP, time_BP - row_BP], axis=-1))


@pytest.mark.parametrize(("unroll", "microbatches"), ((0, 2), (1, 1)))
@pytest.mark.parametrize("kind", KINDS)
def test_answers_to_a_prompt_that_was_read_once_are_those_to_its_copies(kind, unroll, microbatches):
    config = dataclasses.replace(KINDS[kind], scan_unroll=unroll)
    batch, params = questions(kind), models()["policy"]["backbone"]
    run = functools.partial(generate, config, response_length=9, vocabulary=VOCABULARY)
    shared = jax.jit(functools.partial(run, answers=3, microbatches=microbatches))(params, batch, jax.random.key(5))
    copied = jax.jit(run)(params, repeat(batch, 3), jax.random.key(5))
    np.testing.assert_array_equal(shared.tokens_BT, copied.tokens_BT)
    for one, other in zip(jax.tree.leaves(shared), jax.tree.leaves(copied), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    one_each = jax.jit(run)(params, batch, jax.random.key(5))
    assert len(set(map(bytes, np.asarray(shared.tokens_BT)))) > len(one_each.tokens_BT)  # they are not all the same answer


def test_eight_devices_answer_a_prompt_several_times_as_one_does(eight_devices):
    params, batch = models()["policy"]["backbone"], prompts(rows=8)
    run = jax.jit(functools.partial(generate, CONFIG, response_length=9, vocabulary=VOCABULARY, answers=3))
    one = run(params, batch, jax.random.key(5))
    with jax.set_mesh(eight_devices):
        placed = rules.place(params, eight_devices), hosts.global_batch(batch, eight_devices)
        eight = hosts.to_host(run(*placed, jax.random.key(5)))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("unroll", (0, 1))
def test_keys_of_a_prompt_are_nowhere_copied_for_its_answers(unroll):
    """No array of the program has a row for each answer and a place for each token of a prompt, by all key-value heads."""
    config = dataclasses.replace(CONFIG, scan_unroll=unroll)
    batch, params = prompts(rows=4, length=13), models()["policy"]["backbone"]
    run = functools.partial(generate, config, response_length=7, vocabulary=VOCABULARY)

    def largest_keys(rows, **answers) -> bool:
        program = jax.jit(functools.partial(run, **answers)).lower(params, rows, jax.random.key(0)).compile().as_text()
        return any(f"f32[{shape}]" in program for shape in ("12,2,20,4", "2,12,2,20,4", "12,2,13,4", "2,12,2,13,4"))

    assert largest_keys(repeat(batch, 3)) and not largest_keys(batch, answers=3)


def test_a_prompt_is_read_once_for_its_group():
    batch, params = prompts(rows=4), models()["policy"]["backbone"]
    run = functools.partial(generate, CONFIG, response_length=2, vocabulary=VOCABULARY, early_exit=False)

    def operations(rows, **answers) -> float:
        lowered = jax.jit(functools.partial(run, **answers)).lower(params, rows, jax.random.key(0))
        return lowered.compile().cost_analysis()["flops"]

    assert operations(batch, answers=8) < 0.5 * operations(repeat(batch, 8))


def test_a_plan_counts_the_keys_of_a_prompt_once_for_all_its_answers():
    changes = {"data.prompt_length": 24, "data.response_length": 10, "data.batch_size": 8, "mesh.fsdp": 1}
    alone, groups_of_4 = (settings(PPOLagConfig, "ppo_lag", **changes | more) for more in ({}, GROUPS))
    a_token = 2 * CONFIG.text.layers * CONFIG.text.kv_heads * CONFIG.text.head_dim * 4
    assert planned.cache_bytes(alone, CONFIG) == a_token * 8 * (24 + 10)
    assert planned.cache_bytes(groups_of_4, CONFIG) == a_token * 2 * (24 + 4 * 10)


def group_step(mesh=None, **changes):
    known = static(**GROUPS | changes)
    trees = {name: tree for name, tree in models().items() if name != "critic"}
    batch, rollout = rolled()
    return step(known._replace(own_towers=frozenset()), rollout, batch.images, trees, mesh=mesh)


def test_only_the_policy_is_trained_and_nothing_is_said_of_critics():
    done = group_step()
    assert set(done.params) == {"policy"} == set(done.state.opt_state)
    assert not [name for name in done.metrics if "critic" in name or "explained" in name]
    assert float(done.metrics["grad_norm"]) > 0


def test_eight_devices_take_the_step_of_one(eight_devices):
    one, eight = group_step(), group_step(eight_devices)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(hosts.to_host(eight.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_equal_scores_move_nothing():
    trees = {name: tree for name, tree in models().items() if name != "critic"}
    trees["scorer"] = trees["scorer"] | {"heads": jax.tree.map(np.zeros_like, trees["scorer"]["heads"])}
    batch, rollout = rolled()
    known = static(**GROUPS | {"ppo.kl_coef": 0.0, "ppo.missing_eos_penalty": 0.0})._replace(own_towers=frozenset())
    done = step(known, rollout, batch.images, trees)
    assert float(done.metrics["equal_groups"]) == 1 and float(done.metrics["grad_norm"]) == 0
    jax.tree.map(np.testing.assert_array_equal, hosts.to_host(done.params["policy"]), trees["policy"])


def test_groups_that_teach_nothing_are_replaced_whole_and_no_others():
    equal, other = group_step().experience, group_step(**{"ppo.missing_eos_penalty": 1.7}).experience
    zero = jax.tree.map(lambda adv_B: jnp.asarray(adv_B).at[:4].set(0.0), hosts.to_host(equal.groups))
    equal, other = equal._replace(groups=zero), other._replace(ref_logp_BR=other.ref_logp_BR - 2.5)
    assert int(advantages.count_equal_groups(equal, size=4)) == 1
    chosen = advantages.replace_groups(equal, other, size=4)
    for new, old, replacing in zip(*map(jax.tree.leaves, (chosen, equal, other)), strict=True):
        np.testing.assert_array_equal(new[4:], old[4:])
        np.testing.assert_array_equal(new[:4], replacing[:4])
    assert int(advantages.count_equal_groups(chosen, size=4)) == 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ppo.resample": 2}, "config.ppo.resample is 2 and would be ignored: config.ppo.advantage is 'gae'"),
        ({"ppo.advantage": "rloo"}, "group_size must be at least 2 with config.ppo.advantage='rloo', got 1"),
        ({"ppo.advantage": "group", "ppo.group_size": 3}, "batch_size 4, the answers of an iteration, must be a multiple"),
        ({"ppo.group_size": 2}, "config.ppo.group_size is 2 and would be ignored: config.ppo.advantage is 'gae'"),
        (
            {"ppo.advantage": "group", "ppo.group_size": 4, "rollout.microbatches": 2},
            "config.rollout.microbatches 2 must divide the 1",
        ),
    ],
)
def test_groups_that_cannot_be_are_refused(changes, text):
    with pytest.raises(UserError, match=text):
        check.check(settings(PPOLagConfig, "ppo_lag", policy="p", scorer="s", **changes))


@pytest.mark.parametrize(("parts", "expected"), [(1, 1), (2, 1), (8, 2), (32, 8)])
def test_validation_takes_no_more_rows_at_a_time_than_an_iteration(monkeypatch, parts, expected):
    known = settings(PPOLagConfig, "ppo_lag", **GROUPS | {"data.batch_size": 32, "rollout.score_microbatches": parts})
    seen = {}
    monkeypatch.setattr(validate.inputs, "in_order", lambda prompts, data, mesh: seen.update(prompts=data.batch_size))
    monkeypatch.setattr(validate.answering, "sample_answers", lambda *given, **named: None)
    monkeypatch.setattr(validate.scoring, "jit_scores", lambda *given: seen.update(parts=given[-1]))
    models = SimpleNamespace(places=roles.of_settings(known), policy=SimpleNamespace(config=None), own_towers=(), frozen={})
    iteration = SimpleNamespace(settings=known, models=models, mesh=None, rollout_weights=lambda policy: None)
    prompts = SimpleNamespace(rows=(), codec=SimpleNamespace(spoken=None))
    validate.sampler(known, iteration, SimpleNamespace(mesh=None), prompts)(None, None)
    validate.scorer(iteration, None)
    assert seen == {"prompts": 8, "parts": expected} and 8 // expected <= 32 // parts


@pytest.mark.parametrize(
    "name", ("critic_optimizer.learning_rate", "critic_warmup", "ppo.gae_lambda", "ppo.clip_value", "ppo.gamma")
)
def test_settings_of_critics_are_refused_where_there_are_none(name):
    changed = settings(PPOLagConfig, "ppo_lag", **GROUPS)
    with pytest.raises(UserError, match=f"config.{name} would be ignored: config.ppo.advantage is 'group'"):
        unread.check_changed(changed, [name])


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Adapters over one small LLaVA, and prompts about pictures."""
    return adapters_and_prompts(tmp_path_factory.mktemp("stages"))


@pytest.mark.slow
@pytest.mark.parametrize("advantage", ("group", "rloo"))
def test_a_run_without_critics_resumes_to_the_same_numbers(stages, tmp_path, advantage):
    """Over adapters, with pictures, a function beside the learned cost, KL as a loss, validation, samples, two epochs in parts."""
    (tmp_path / "costs.py").write_text("def long(samples):\n    return [len(sample.answer) / 80 for sample in samples]\n")
    prompts = {"data.path": str(stages / "prompts.parquet"), "data.split": "", "data.batch_size": 8}
    prompts |= {"data.prompt_length": 40, "data.response_length": 8}
    parts = {"ppo.epochs": 2, "ppo.minibatches": 2, "microbatches": 2, "rollout.microbatches": 2, "rollout.score_microbatches": 4}
    ways = {"ppo.advantage": advantage, "ppo.group_size": 4, "ppo.kl_in": "loss", "ppo.reduction": "fixed"}
    ways |= {"ppo.resample": 2, "constraint.kind": "probability", "ppo.missing_eos_penalty": 0.0}
    watched = {"validation.path": prompts["data.path"], "log.samples_every": 2, "log.samples": 3, "checkpoint.every_steps": 1}
    where = {"policy": str(stages / "sft"), "scorer": str(stages / "scores"), "sharing": "adapters", "iterations": 4}
    where |= {"cost_fn": f"{tmp_path / 'costs.py'}:long*0.5,model", "reward_fn": f"{tmp_path / 'costs.py'}:long"}
    run = settings(PPOLagConfig, "ppo_lag", **where, **prompts, **parts, **ways, **watched)
    done = ppo_lag.run(run, tmp_path / "whole")
    assert (
        done["resampled"] >= 0
        and 0 <= done["equal_groups"] <= 1
        and done["kl_loss"] >= 0
        and done["cost.long"] > 0
        and "validation.helpful" in done
    )
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for number in (3, 4):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(number))
    ppo_lag.run(run, tmp_path / "cut")
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    one, other = (hosts.to_host(load_pretrained(tmp_path / name).params) for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
