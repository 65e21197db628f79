"""Variants of the clipped policy loss, and what is added to it: against values by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_ppo import models, rolled, static, step
from tiny_stages import settings

from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.losses import lagrangian, ppo, shaping
from srlhfv_jax.ppo_lag import advantages, check
from srlhfv_jax.ppo_lag.update import scan

RATIO = np.float32([[0.5, 0.85, 1.0, 1.15, 1.27, 4.0]])
MASK = jnp.ones((1, 6), bool)


def gains(adv: float, **how) -> np.ndarray:
    """The term of each token, with the advantage `adv`: the loss's sum over this token alone, negative."""
    old_BR, adv_BR, how = jnp.full((1, 6), -2.5), jnp.full((1, 6), adv), dict(clip_ratio=0.2, reduction="token") | how
    alone = [MASK & (jnp.arange(6) == t)[None] for t in range(6)]
    return np.array([-ppo.policy(old_BR + jnp.log(RATIO), old_BR, adv_BR, mask_BR, **how).sum for mask_BR in alone])


def test_the_clip_above_one_may_be_wider_than_the_clip_below():
    np.testing.assert_allclose(gains(1.5, clip_ratio_high=0.28), 1.5 * np.minimum(RATIO[0], 1.28), rtol=1e-5)
    np.testing.assert_allclose(gains(-1.5, clip_ratio_high=0.28), -1.5 * np.maximum(RATIO[0], 0.8), rtol=1e-5)
    np.testing.assert_allclose(gains(1.5), 1.5 * np.minimum(RATIO[0], 1.2), rtol=1e-5)


def test_the_second_clip_bounds_the_loss_of_a_negative_advantage_alone():
    np.testing.assert_allclose(gains(-0.7, dual_clip=3.0), -0.7 * np.clip(RATIO[0], 0.8, 3.0), rtol=1e-5)
    np.testing.assert_allclose(gains(0.7, dual_clip=3.0), gains(0.7), rtol=1e-6)
    assert np.isclose(gains(-0.7)[-1], -0.7 * 4.0)


def test_the_log_of_the_ratio_is_clipped_where_the_ratio_would_be():
    log = np.log(RATIO[0])
    np.testing.assert_allclose(gains(2.0, objective="log"), 2.0 * np.minimum(log, np.log(1.2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gains(-2.0, objective="log"), -2.0 * np.maximum(log, np.log(0.8)), rtol=1e-4, atol=1e-6)


def gradient(log_ratio: float, adv: float, **how) -> float:
    one = jnp.ones((1, 1))

    def loss(logp):
        how_all = dict(clip_ratio=0.2, reduction="token") | how
        return ppo.policy(logp * one, -1.3 * one, adv * one, jnp.ones((1, 1), bool), **how_all).sum

    return float(jax.grad(loss)(jnp.float32(-1.3 + log_ratio)))


def test_the_gradient_of_the_log_objective_is_that_of_the_ratio_without_its_weight():
    assert gradient(0.0, 1.7, objective="log") == pytest.approx(gradient(0.0, 1.7))
    ratio = float(np.exp(-0.4))
    assert gradient(-0.4, 1.7, objective="log") == pytest.approx(gradient(-0.4, 1.7) / ratio, rel=1e-5)


def test_weights_of_tokens_multiply_their_terms_and_have_no_gradient():
    weight_BR = jnp.asarray([[0.25, 1.5]])
    logp_BR, old_BR, adv_BR = jnp.asarray([[-1.0, -0.5]]), jnp.asarray([[-1.1, -0.4]]), jnp.asarray([[0.3, -2.0]])
    loss = functools.partial(ppo.policy, logp_BR, old_BR, adv_BR, jnp.ones((1, 2), bool), clip_ratio=0.2, reduction="token")
    expected = -(0.25 * 0.3 * np.exp(0.1) - 1.5 * 2.0 * np.exp(-0.1))
    assert float(loss(weight_BR=weight_BR).sum) == pytest.approx(expected, rel=1e-5)
    assert (np.asarray(jax.grad(lambda w: loss(weight_BR=w).sum)(weight_BR)) == 0).all()


def test_importance_weights_are_cut_at_their_cap():
    trainer_BR, sampler_BR = jnp.asarray([[-1.0, -1.0, -3.0]]), jnp.asarray([[-1.25, -4.0, -jnp.inf]])
    weight_BR = ppo.importance(trainer_BR, sampler_BR, jnp.asarray([[True, True, False]]), cap=2.0)
    np.testing.assert_allclose(weight_BR, [[np.exp(0.25), 2.0, 0.0]], rtol=1e-5)


def test_the_last_tokens_of_the_room_cost_ever_more():
    lengths = np.array([1, 6, 7, 8, 10])
    mask_BR = jnp.arange(10)[None] < lengths[:, None]
    np.testing.assert_allclose(shaping.overlong(mask_BR, last=4), [0, 0, 0.25, 0.5, 1.0])


def run(trees=None, **changes):
    batch, rollout = rolled()
    return step(static(**changes), rollout, batch.images, trees or models())


def test_an_overlong_answer_loses_reward_and_no_cost():
    plain, punished = run(), run(**{"ppo.overlong": 5, "ppo.overlong_penalty": 0.6})
    mask_BR = np.asarray(plain.experience.rollout.response_mask_BR)
    expected = 0.6 * np.clip((mask_BR.sum(1) - 2) / 5, 0, 1)
    np.testing.assert_allclose(plain.experience.reward_B - punished.experience.reward_B, expected, atol=1e-5)
    np.testing.assert_array_equal(plain.experience.costs_B["cost"], punished.experience.costs_B["cost"])


@pytest.mark.slow
def test_where_sampler_and_trainer_agree_importance_weights_change_nothing():
    recomputed = {"rollout.old_logp": "recompute"}
    plain, weighted = run(**recomputed), run(**recomputed | {"ppo.importance_cap": 2.0})
    assert float(weighted.metrics["importance"][0] / weighted.metrics["importance"][1]) == pytest.approx(1, abs=1e-4)
    for one, other in zip(*(jax.tree.leaves(done.params["policy"]) for done in (plain, weighted)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_a_bonus_for_entropy_raises_it():
    entropies = [float(run(**{"ppo.entropy_coef": coef, "ppo.epochs": 6}).metrics["entropy"]) for coef in (0.0, 3.0)]
    assert entropies[1] > entropies[0]


def test_the_reward_stream_alone_is_centred():
    mask_BR = jnp.asarray([[True, True, False], [True, True, True]])
    reward_BR, cost_BR = jnp.asarray([[1.0, 3.5, 0], [0.5, 2.0, 4.0]]), jnp.asarray([[0.5, 0.25, 0], [1.0, -1.0, 2.0]])
    how = static(**{"ppo.whiten": "reward_mean"}).settings.ppo
    mixed_BR = advantages._mixed(reward_BR, {"cost": cost_BR}, mask_BR, {"cost": jnp.float32(0.8)}, how)
    real, cost = (np.asarray(x)[np.asarray(mask_BR)] for x in (reward_BR, cost_BR))
    expected = ((real - real.mean()) / real.std() - 0.8 * cost / cost.std()) / 1.8
    np.testing.assert_allclose(np.asarray(mixed_BR)[np.asarray(mask_BR)], expected, rtol=1e-5)


def test_steps_after_one_that_went_too_far_change_nothing():
    distances = jnp.asarray([0.01, 0.06, 0.02, 0.01])

    def body(state, index):
        return state + 1.5, {"approx_kl": distances[index]}

    state, metrics = jax.jit(lambda: scan(body, jnp.float32(0), 4, 0.05))()
    assert float(state) == 3.0 and metrics["taken"].tolist() == [True, True, False, False]
    state, metrics = jax.jit(lambda: scan(body, jnp.float32(0), 4, 0.0))()
    assert float(state) == 6.0 and "taken" not in metrics


@pytest.mark.slow
def test_a_run_stops_its_steps_early_and_says_how_many_it_took():
    several = {"ppo.epochs": 3, "ppo.minibatches": 2}
    whole, stopped, never = (run(**several | {"ppo.target_kl": limit}) for limit in (0.0, 1e-9, 1e3))
    assert "steps_taken" not in whole.metrics and float(never.metrics["steps_taken"]) == 6
    assert 1 <= float(stopped.metrics["steps_taken"]) < 6
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(never.params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    with pytest.raises(AssertionError):
        for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(stopped.params), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_crpo_takes_steps_for_one_of_the_two_alone():
    constraint = static(
        **{
            "constraint.controller": "crpo",
            "constraint.max": 1e6,
            "constraint.tolerance": 0.25,
            "constraint.budget": 0.5,
            "constraint.init": 0.0,
        }
    ).settings.constraint
    state = lagrangian.init(constraint)
    for cost, multiplier in ((0.7, 0.0), (1.9, 1e6), (-3.0, 0.0)):
        state = lagrangian.update_multiplier(constraint, state, jnp.full(16, cost))
        assert float(lagrangian.multiplier(constraint, state)) == multiplier
    mixed = lagrangian.combine(jnp.asarray([0.4]), {"cost": jnp.asarray([-1.25])}, {"cost": jnp.float32(1e6)})
    assert float(mixed[0]) == pytest.approx(1.25, abs=1e-5)


def test_the_parts_of_pid_sum_to_the_multiplier():
    how = {"constraint.controller": "pid", "constraint.kp": 0.4, "constraint.kd": 0.9, "constraint.smoothing": 0.3}
    constraint = static(**how | {"constraint.budget": -0.2, "constraint.max": 50.0}).settings.constraint
    state = lagrangian.init(constraint)
    for cost in (0.5, 1.25, 0.75, 2.0):
        before, state = state, lagrangian.update_multiplier(constraint, state, jnp.full(16, cost))
        parts = lagrangian.parts(constraint, before, state)
        assert float(sum(parts.values())) == pytest.approx(float(lagrangian.multiplier(constraint, state)), rel=1e-5)
    assert set(parts) == {"lambda.p", "lambda.i", "lambda.d"} and float(parts["lambda.d"]) > 0


def test_quantiles_and_rates_are_logged():
    done = run(**{"policy_optimizer.schedule": "linear"})
    reward_B = np.asarray(done.experience.reward_B)
    for share in (10, 50, 90):
        assert float(done.metrics[f"reward.p{share}"]) == pytest.approx(np.quantile(reward_B, share / 100), abs=1e-5)
    assert float(done.metrics["policy_learning_rate"]) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ppo.dual_clip": 0.5}, "config.ppo.dual_clip must be above 1"),
        ({"ppo.objective": "log", "ppo.clip_ratio": 1.5}, "config.ppo.clip_ratio must be below 1"),
        ({"ppo.objective": "log", "ppo.dual_clip": 3.0}, "config.ppo.dual_clip bounds ratios"),
        ({"ppo.importance_cap": 2.0}, "config.ppo.importance_cap is 2.0 and would be ignored"),
        ({"ppo.target_kl": 0.1, "ppo.minibatches": 1}, "config.ppo.target_kl is 0.1 and would be ignored"),
        ({"ppo.overlong": 900}, "config.ppo.overlong 900 must be at most config.data.response_length 8"),
    ],
)
def test_bounds_that_say_nothing_are_refused(changes, text):
    with pytest.raises(UserError, match=text):
        check.check(settings(PPOLagConfig, "ppo_lag", policy="p", scorer="s", **changes))
