"""Slots that refill: the answers of the loop that waits for the longest, token for token, from fewer rows at a time."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_groups import KINDS, questions
from tiny_stages import adapters_and_prompts, settings
from tiny_vlm import CONFIG, PAD, VOCABULARY, backbone, prompts

from srlhfv_jax.batches import Rollout
from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.parallel.mesh import one_device
from srlhfv_jax.ppo_lag import check, run as ppo_lag
from srlhfv_jax.rollout.generate import generate
from srlhfv_jax.rollout.refill import occupancy, refill
from srlhfv_jax.rollout.sampling import Sampling

R = 9


def run(sampler, batch, *, seed=0, params=None, temperature=1.0, length=R, config=CONFIG, **how) -> Rollout:
    fixed = dict(response_length=length, vocabulary=VOCABULARY, sampling=Sampling(temperature), **how)
    return jax.jit(functools.partial(sampler, config, **fixed))(
        backbone(config=config) if params is None else params, batch, jax.random.key(seed)
    )


def assert_same(got: Rollout, expected: Rollout) -> None:
    for name in ("tokens_BT", "positions_BT", "mask_BT", "response_mask_BR", "ended_B"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    chex.assert_trees_all_close((got.logp_BR, got.features), (expected.logp_BR, expected.features), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("slots", "temperature"), [(1, 1.0), (5, 1.0), (5, 0.0), (16, 1.0)])
def test_slots_that_refill_give_the_answers_of_the_plain_loop(slots, temperature):
    batch = prompts(rows=12)
    expected = run(generate, batch, temperature=temperature)
    lengths = np.asarray(expected.response_mask_BR).sum(1)
    assert len(set(lengths.tolist())) > 1
    assert_same(run(refill, batch, temperature=temperature, slots=slots), expected)


@pytest.mark.parametrize("slots", [3, 6])
def test_answers_to_one_prompt_begin_together_and_are_those_of_the_plain_loop(slots):
    batch = prompts(rows=4)
    got = run(refill, batch, slots=slots, answers=3)
    assert_same(got, run(generate, batch, answers=3))
    begun = np.asarray(got.begun_B).reshape(4, 3)
    assert (begun == begun[:, :1]).all()


@pytest.mark.parametrize("slots", [8, 16])
def test_eight_devices_refill_each_for_itself(eight_devices, slots):
    batch, params = prompts(rows=24), backbone()
    expected = run(generate, batch, params=params, seed=4)
    with jax.set_mesh(eight_devices):
        host = hosts.global_batch(jax.tree.map(np.asarray, batch), eight_devices)
        got = run(refill, host, params=rules.place(params, eight_devices), seed=4, slots=slots)
    assert_same(got, expected)


def test_lengths_that_are_given_are_kept_and_the_loop_is_as_short_as_they_allow():
    lengths = np.array([1, 9, 2, 2, 1, 9, 3, 1])
    got = run(refill, prompts(rows=8), slots=2, length_B=jnp.asarray(lengths))
    np.testing.assert_array_equal(np.asarray(got.response_mask_BR).sum(1), lengths)
    # By hand. Tokens that come from the loop are 0 8 1 1 0 8 2 0. Slots take answers in order, one whenever it is free:
    # the first has 0, 2 (1 step), 3 (1), 4, 5 (8 steps, from step 2 to 10); the second 1 (8 steps), 6 (2), 7.
    np.testing.assert_array_equal(got.begun_B, [0, 0, 0, 1, 2, 2, 8, 10])
    assert float(occupancy(got, 2)) == pytest.approx(20 / (2 * 10))


def test_rows_that_never_end_and_rows_that_end_at_once():
    never = run(refill, prompts(rows=4), slots=2, length_B=jnp.full(4, R + 5))
    assert np.asarray(never.response_mask_BR).all() and not np.asarray(never.ended_B).any()
    np.testing.assert_array_equal(never.begun_B, [0, 0, R - 1, R - 1])
    at_once = run(refill, prompts(rows=4), slots=2, length_B=jnp.ones(4, int))
    assert np.asarray(at_once.response_mask_BR).sum() == 4 and np.asarray(at_once.ended_B).all()
    assert (np.asarray(at_once.tokens_BT)[:, -R + 1 :] == PAD).all()


@pytest.mark.parametrize(
    ("kind", "unroll"),
    [("plain", 1), ("local layers", 0), ("local layers", 1), ("M-RoPE", 0), ("activated", 0), ("activated", 1)],
)
def test_every_kind_of_model_refills(kind, unroll):
    config = dataclasses.replace(KINDS[kind], scan_unroll=unroll)
    batch = questions(kind)
    batch = jax.tree.map(
        lambda *x: jnp.concatenate(x), batch, batch, batch._replace(images=jax.tree.map(lambda x: -x, batch.images))
    )
    params = backbone(config=CONFIG)
    assert_same(
        *(run(sampler, batch, params=params, config=config, **how) for sampler, how in ((refill, {"slots": 3}), (generate, {})))
    )


def test_the_cache_has_a_row_for_each_slot_and_not_for_each_prompt():
    batch, params = prompts(rows=16), backbone()

    def keys(sampler, **how) -> bool:
        fixed = dict(response_length=R, vocabulary=VOCABULARY, **how)
        program = jax.jit(functools.partial(sampler, CONFIG, **fixed)).lower(params, batch, jax.random.key(0)).compile().as_text()
        return any(f"f32[{rows},2,{batch.tokens_BP.shape[1] + R},4]" in program for rows in (16, "2,16"))

    assert keys(generate) and not keys(refill, slots=4)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Adapters over one small LLaVA, and prompts about pictures."""
    return adapters_and_prompts(tmp_path_factory.mktemp("stages"))


@pytest.mark.slow
def test_a_run_in_slots_is_the_run_without(stages, tmp_path):
    prompts = {"data.path": str(stages / "prompts.parquet"), "data.split": "", "data.batch_size": 8}
    prompts |= {"data.prompt_length": 40, "data.response_length": 8, "validation.path": str(stages / "prompts.parquet")}
    where = {"policy": str(stages / "sft"), "scorer": str(stages / "scores"), "iterations": 2}
    plain = ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **where, **prompts), tmp_path / "plain")
    slots = ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **where, **prompts, **{"rollout.slots": 3}), tmp_path / "slots")
    assert 0 < slots.pop("occupancy") <= 1
    for name in plain.keys() - {"seconds"}:
        np.testing.assert_allclose(slots[name], plain[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("slots", "text"), [(3, "a multiple of 2"), (32, "at most config.data.batch_size 8"), (-1, "rollout.slots")]
)
def test_slots_that_do_not_fit_are_refused(slots, text):
    changes = {"data.batch_size": 8, "rollout.slots": slots, "ppo.advantage": "rloo", "ppo.group_size": 2}
    with pytest.raises(UserError, match=text):
        check.check_rows(settings(PPOLagConfig, "ppo_lag", **changes), one_device())
