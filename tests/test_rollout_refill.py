"""Slots that refill: the answers of the loop that waits for the longest, token for token, from fewer rows at a time."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vlm import CONFIG, PAD, VOCABULARY, backbone, prompts

from srlhfv_jax.batches import Rollout
from srlhfv_jax.parallel import hosts, rules
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


@pytest.mark.parametrize("slots", [1, 2, 5, 12, 16])
@pytest.mark.parametrize("temperature", [1.0, 0.0])
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
