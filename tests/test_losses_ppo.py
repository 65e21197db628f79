"""Token rewards, GAE and the clipped losses: against loops, against hand-made numbers, and under padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from srlhfv_jax.losses import gae, lagrangian, ppo, shaping

B, R = 4, 9
LENGTHS = np.array([9, 4, 1, 6])
MASK_BR = np.arange(R)[None, :] < LENGTHS[:, None]


def normal(seed, shape=(B, R)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_end_score_is_paid_at_the_last_true_position_and_the_kl_everywhere():
    kl_BR = jnp.array([[0.5, -0.25, 0.75], [0.125, 0.5, 0.25]])
    mask_BR = jnp.array([[True, True, False], [True, True, True]])
    score_B = jnp.array([1.5, -2.5])
    rewards_BR = shaping.token_rewards(kl_BR, score_B, mask_BR, kl_coef=0.1, clip_score=50.0)
    np.testing.assert_allclose(rewards_BR, [[-0.05, 1.525, 0.0], [-0.0125, -0.05, -2.525]], rtol=1e-6)
    costs_BR = shaping.token_costs(kl_BR, score_B, mask_BR, kl_coef=0.1, clip_score=50.0)
    np.testing.assert_allclose(costs_BR, [[0.05, 1.475, 0.0], [0.0125, 0.05, -2.475]], rtol=1e-6)


def test_the_score_is_clipped_and_the_kl_is_not():
    kl_BR, mask_BR = jnp.array([[-700.5, 300.25]]), jnp.ones((1, 2), bool)
    rewards_BR = shaping.token_rewards(kl_BR, jnp.array([88.5]), mask_BR, kl_coef=1.0, clip_score=50.0)
    np.testing.assert_allclose(rewards_BR, [[700.5, 50 - 300.25]])


def test_a_row_without_tokens_gets_no_score():
    rewards_BR = shaping.token_rewards(normal(0, (1, 3)), jnp.array([2.5]), jnp.zeros((1, 3), bool), kl_coef=0.1, clip_score=50.0)
    np.testing.assert_array_equal(rewards_BR, jnp.zeros((1, 3)))


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0)])
def test_the_scan_of_gae_equals_a_loop_with_its_gamma_and_lambda(gamma, gae_lambda):
    reward_BR, value_BR = normal(1), normal(2)
    results = gae.gae(reward_BR, value_BR, MASK_BR, gamma=gamma, gae_lambda=gae_lambda)
    adv_BR, return_BR = (np.array(x) for x in results)
    for b, length in enumerate(LENGTHS):
        adv, values = 0.0, np.append(value_BR[b, :length], 0.0)
        for t in reversed(range(length)):
            adv = reward_BR[b, t] + gamma * values[t + 1] - values[t] + gamma * gae_lambda * adv
            np.testing.assert_allclose(adv_BR[b, t], adv, rtol=2e-5, atol=1e-5)
            np.testing.assert_allclose(return_BR[b, t], adv + values[t], rtol=2e-5, atol=1e-5)
    assert np.all(adv_BR[~MASK_BR] == 0) and np.all(return_BR[~MASK_BR] == 0)


def test_with_lambda_one_and_gamma_one_the_return_is_the_sum_of_what_is_to_come():
    reward_BR, value_BR = normal(1), normal(2)
    _, return_BR = gae.gae(reward_BR, value_BR, MASK_BR, gamma=1.0, gae_lambda=1.0)
    to_come_BR = np.cumsum(np.where(MASK_BR, reward_BR, 0)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(return_BR, np.where(MASK_BR, to_come_BR, 0.0), rtol=1e-5, atol=1e-5)


def test_no_advantage_sees_the_past():
    value_BR = normal(2)
    jacobian = jax.jit(jax.jacobian(lambda r_BR: gae.gae(r_BR, value_BR, MASK_BR, gamma=0.97, gae_lambda=0.9)[0]))
    gradient = np.array(jacobian(normal(1)))
    for t in range(LENGTHS[0]):
        assert np.all(gradient[0, t, 0, :t] == 0) and np.all(gradient[0, t, 0, t:] != 0)


def test_the_first_minibatch_has_ratio_one_and_kl_zero():
    logp_BR, adv_BR = -np.abs(normal(3)), normal(4)
    loss = jax.jit(lambda x_BR: ppo.policy(x_BR, logp_BR, adv_BR, MASK_BR, clip_ratio=0.2, reduction="token"))(logp_BR)
    means = {name: float(total / count) for name, (total, count) in loss.metrics.items()}
    assert means == {"clip_fraction": 0, "approx_kl": 0, "ratio": 1, "ratio_row_max": 1, "log_ratio_abs": 0}
    np.testing.assert_allclose(loss.sum, -adv_BR[MASK_BR].sum(), rtol=1e-5)


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    logp_BR, adv_BR = -np.abs(normal(3)), normal(4)
    slope = jax.jit(jax.grad(lambda x_BR: ppo.policy(x_BR, logp_BR, adv_BR, MASK_BR, clip_ratio=0.2, reduction="token").sum))
    gradient = slope(logp_BR)
    np.testing.assert_allclose(gradient, np.where(MASK_BR, -adv_BR, 0.0), rtol=1e-5)


def test_the_clip_stops_the_gradient_only_where_it_would_overshoot():
    # Ratios 1.5 and 0.5 with both signs of the advantage: (1.5, +) and (0.5, -) are beyond the trust region already.
    ratio_BR = jnp.array([[1.5, 1.5, 0.5, 0.5, 1.1]])
    adv_BR = jnp.array([[2.5, -2.5, 2.5, -2.5, 2.5]])
    mask_BR, old_BR = jnp.ones((1, 5), bool), jnp.full((1, 5), -1.25)

    def total(logp_BR):
        loss = ppo.policy(logp_BR, old_BR, adv_BR, mask_BR, clip_ratio=0.2, reduction="token")
        return loss.sum, loss

    gradient, loss = jax.jit(jax.grad(total, has_aux=True))(old_BR + jnp.log(ratio_BR))
    np.testing.assert_allclose(loss.sum, -(1.2 * 2.5 - 1.5 * 2.5 + 0.5 * 2.5 - 0.8 * 2.5 + 1.1 * 2.5), rtol=1e-5)
    np.testing.assert_allclose(gradient, [[0.0, 1.5 * 2.5, -0.5 * 2.5, 0.0, -1.1 * 2.5]], rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["clip_fraction"][0], 4)


def test_a_far_off_log_ratio_overflows_nothing():
    logp_BR, old_BR = jnp.array([[-0.5, -900.0]]), jnp.array([[-900.0, -0.5]])
    mask_BR, adv_BR = jnp.ones((1, 2), bool), jnp.array([[0.5, -0.5]])
    slope = jax.jit(jax.grad(lambda x_BR: ppo.policy(x_BR, old_BR, adv_BR, mask_BR, clip_ratio=0.2, reduction="token").sum))
    gradient = slope(logp_BR)
    assert jnp.all(jnp.isfinite(gradient))


def test_value_loss_takes_the_larger_error():
    value_BR, old_BR, return_BR = jnp.array([[2.5, 0.3]]), jnp.array([[0.5, 0.25]]), jnp.array([[3.0, 0.75]])
    loss = ppo.value(value_BR, old_BR, return_BR, jnp.ones((1, 2), bool), clip_value=1.0, reduction="token")
    # Position 0: clipped to 1.5, error 1.5² > 0.5². Position 1: inside the range, 0.45².
    np.testing.assert_allclose(loss.sum, 0.5 * (1.5**2 + 0.45**2), rtol=1e-6)
    np.testing.assert_allclose(loss.metrics["clip_fraction"][0], 1)


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one():
    return_BR = normal(6)
    np.testing.assert_allclose(ppo.explained_variance(return_BR, return_BR, MASK_BR), 1.0)
    np.testing.assert_allclose(ppo.explained_variance(jnp.full((B, R), 0.7), return_BR, MASK_BR), 0.0, atol=1e-5)
    assert ppo.explained_variance(return_BR, jnp.full((B, R), 0.25), MASK_BR) == 0


def test_gradients_are_those_of_finite_differences():
    logp_BR, old_BR = -np.abs(normal(3)), -np.abs(normal(5))
    check_grads(
        jax.jit(lambda x_BR: ppo.policy(x_BR, old_BR, normal(4), MASK_BR, clip_ratio=0.2, reduction="sequence").sum),
        (logp_BR,), 1, modes=["rev"], atol=1e-2, rtol=1e-2,
    )  # fmt: skip
    check_grads(
        jax.jit(lambda x_BR: ppo.value(x_BR, normal(6), normal(7), MASK_BR, clip_value=0.5, reduction="sequence").sum),
        (normal(8),), 1, modes=["rev"], atol=1e-2, rtol=1e-2,
    )  # fmt: skip


def whole_update(logp_BR, value_BR, mask_BR, lam, reduction, reward_B, cost_B, ref_logp_BR, old_logp_BR, old_value_BR):
    """Everything between scores and losses, as the stage composes it."""
    kl_BR = old_logp_BR - ref_logp_BR
    shape = {"kl_coef": 0.1, "clip_score": 50.0}
    reward_BR = shaping.token_rewards(kl_BR, reward_B, mask_BR, **shape)
    cost_BR = shaping.token_costs(kl_BR, cost_B, mask_BR, **shape)
    reward_adv_BR, reward_return_BR = gae.gae(reward_BR, old_value_BR, mask_BR, gamma=1.0, gae_lambda=0.95)
    cost_adv_BR, cost_return_BR = gae.gae(cost_BR, -old_value_BR, mask_BR, gamma=1.0, gae_lambda=0.95)
    adv_BR = lagrangian.combine(reward_adv_BR, {"cost": cost_adv_BR}, {"cost": lam})
    policy = ppo.policy(logp_BR, old_logp_BR, adv_BR, mask_BR, clip_ratio=0.2, reduction=reduction)
    critics = [
        ppo.value(value_BR, old_value_BR, return_BR, mask_BR, clip_value=0.2, reduction=reduction)
        for return_BR in (reward_return_BR, cost_return_BR)
    ]
    total = policy.sum / policy.count + sum(critic.sum / critic.count for critic in critics)
    return total, (policy, critics)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("rubbish", [3.5, np.nan])
def test_padding_changes_nothing_in_the_whole_update(reduction, rubbish):
    arrays = {"logp_BR": -np.abs(normal(1)), "value_BR": normal(2), "ref_logp_BR": -np.abs(normal(3))}
    arrays |= {"old_logp_BR": -np.abs(normal(4)), "old_value_BR": normal(5)}
    scores = {"reward_B": normal(6, (B,)), "cost_B": normal(7, (B,)), "lam": 1.7, "reduction": reduction}

    def gradient(arrays, mask_BR):
        def loss(logp_BR, value_BR):
            rest = {name: x for name, x in arrays.items() if name not in ("logp_BR", "value_BR")}
            return whole_update(logp_BR, value_BR, mask_BR, **rest, **scores)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(arrays["logp_BR"], arrays["value_BR"])

    def widen(x_BR):
        dirty_BR = np.where(MASK_BR, x_BR, np.float32(rubbish))
        return np.pad(dirty_BR, ((0, 0), (0, 5)), constant_values=rubbish)

    short, short_gradients = gradient(arrays, MASK_BR)
    wide, wide_gradients = gradient({k: widen(x) for k, x in arrays.items()}, np.pad(MASK_BR, ((0, 0), (0, 5))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), short, wide)
    for a, b in zip(short_gradients, wide_gradients, strict=True):
        np.testing.assert_allclose(a, b[:, :R], rtol=1e-5, atol=1e-6)
        assert jnp.all(b[:, R:] == 0)


@pytest.mark.parametrize("lam", [0.0, 0.35, 1.0, 20.0])
def test_kl_strength_in_the_combined_advantage_does_not_depend_on_lambda(lam):
    kl_BR, nothing_B, zero_BR = normal(1), jnp.zeros(B), jnp.zeros((B, R))
    shape = {"kl_coef": 0.3, "clip_score": 50.0}
    reward_BR = shaping.token_rewards(kl_BR, nothing_B, MASK_BR, **shape)
    cost_BR = shaping.token_costs(kl_BR, nothing_B, MASK_BR, **shape)
    # With gae_lambda = 0 and V = 0 the advantage of a token is its own reward.
    advs = [gae.gae(x_BR, zero_BR, MASK_BR, gamma=1.0, gae_lambda=0.0)[0] for x_BR in (reward_BR, cost_BR)]
    np.testing.assert_allclose(
        lagrangian.combine(advs[0], {"cost": advs[1]}, {"cost": lam}), jnp.where(MASK_BR, -0.3 * kl_BR, 0.0), rtol=1e-5, atol=1e-6
    )


def test_lambda_zero_is_ppo_and_lambda_to_infinity_is_minus_the_cost_advantage():
    reward_adv_BR, cost_adv_BR = normal(1), normal(2)
    np.testing.assert_array_equal(lagrangian.combine(reward_adv_BR, {"cost": cost_adv_BR}, {"cost": 0.0}), reward_adv_BR)
    np.testing.assert_allclose(
        lagrangian.combine(reward_adv_BR, {"cost": cost_adv_BR}, {"cost": 1e7}), -cost_adv_BR, rtol=1e-4, atol=1e-5
    )
