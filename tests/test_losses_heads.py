"""The reward and the cost loss against the formulas of the papers, with ties, missing labels and graded signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from srlhfv_jax.losses import cost, reward

CHOSEN_B = jnp.array([0.75, -0.5, 1.25])
REJECTED_B = jnp.array([0.25, 0.5, -0.75])
HIGH_B = jnp.array([1.5, -0.25, 0.75])  # costs of the costlier side
LOW_B = jnp.array([-0.5, 0.5, 0.25])
COST_BS = jnp.stack([HIGH_B, LOW_B], axis=1)
ONES_B = jnp.ones(3)


def sigmoid_loss(x):
    return np.log1p(np.exp(-np.asarray(x, np.float64)))


def mean(pair):
    return float(pair[0] / pair[1])


def test_reward_loss_is_bradley_terry_with_a_squared_penalty():
    loss = reward.reward(CHOSEN_B, REJECTED_B, ONES_B, score_l2=0.1)
    chosen, rejected = np.array(CHOSEN_B), np.array(REJECTED_B)
    expected = sigmoid_loss(chosen - rejected).mean() + 0.1 * np.square([chosen, rejected]).mean()
    np.testing.assert_allclose(loss.sum / loss.count, expected, rtol=1e-6)
    np.testing.assert_allclose(mean(loss.metrics["pair_accuracy"]), 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(mean(loss.metrics["margin"]), (0.5 - 1.0 + 2.0) / 3, rtol=1e-6)


def test_without_the_penalty_reward_sees_differences_only():
    shifted = reward.reward(CHOSEN_B + 5.5, REJECTED_B + 5.5, ONES_B, score_l2=0.0)
    loss = reward.reward(CHOSEN_B, REJECTED_B, ONES_B, score_l2=0.0)
    np.testing.assert_allclose(shifted.sum, loss.sum, rtol=1e-5)


@pytest.mark.parametrize("rubbish", [123.5, jnp.nan])
def test_a_row_of_weight_zero_takes_no_part_in_the_reward_loss(rubbish):
    def total(chosen_B, weight_B):
        loss = reward.reward(chosen_B, jnp.append(REJECTED_B, 0.5), weight_B, score_l2=0.1)
        return loss.sum / loss.count

    weight_B = jnp.append(ONES_B, 0.0)
    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.append(CHOSEN_B, rubbish), weight_B)
    loss = reward.reward(CHOSEN_B, REJECTED_B, ONES_B, score_l2=0.1)
    np.testing.assert_allclose(value, loss.sum / loss.count, rtol=1e-6)
    assert gradient[3] == 0 and jnp.all(jnp.isfinite(gradient))


def test_cost_loss_with_labels_is_the_formula_of_safe_rlhf():
    sign_BS = jnp.array([[1.0, -1.0], [-1.0, -1.0], [1.0, 1.0]])
    loss = cost.cost(HIGH_B, LOW_B, ONES_B, COST_BS, sign_BS, sign_weight=0.5, score_l2=0.01)
    high, low = np.array(HIGH_B), np.array(LOW_B)
    pair = sigmoid_loss(high - low)
    sign = sigmoid_loss(sign_BS[:, 0] * high) + sigmoid_loss(sign_BS[:, 1] * low)
    expected = (pair + 0.5 * sign).mean() + 0.01 * (np.array(COST_BS) ** 2).mean()
    np.testing.assert_allclose(loss.sum / loss.count, expected, rtol=1e-6)
    # Signs agree at (1.5, +), (-0.5, -), (-0.25, -), (0.75, +), (0.25, +); (0.5, -) does not.
    np.testing.assert_allclose(mean(loss.metrics["sign_accuracy"]), 5 / 6, rtol=1e-6)
    np.testing.assert_allclose(mean(loss.metrics["pair_accuracy"]), 2 / 3, rtol=1e-6)


def test_a_graded_sign_scales_the_argument_and_so_saturates_sooner():
    def loss_of(sign):
        sign_BS = jnp.full((1, 2), sign)
        return cost.cost(HIGH_B[:1], LOW_B[:1], jnp.zeros(1), COST_BS[:1], sign_BS, sign_weight=1.0, score_l2=0.0).sum

    np.testing.assert_allclose(loss_of(3.0), sigmoid_loss([4.5, -1.5]).sum(), rtol=1e-6)
    np.testing.assert_allclose(loss_of(-2.0), sigmoid_loss([-3.0, 1.0]).sum(), rtol=1e-6)


def test_sign_zero_gives_no_gradient_and_is_not_counted():
    sign_BS = jnp.array([[2.0, 0.0], [0.0, 0.0], [1.0, -1.0]])

    def sign_term(cost_BS):
        loss = cost.cost(HIGH_B, LOW_B, jnp.zeros(3), cost_BS, sign_BS, sign_weight=1.0, score_l2=0.0)
        return loss.sum, loss

    gradient, loss = jax.jit(jax.grad(sign_term, has_aux=True))(COST_BS)
    assert jnp.all((gradient == 0) == (sign_BS == 0))
    assert loss.metrics["sign_loss"][1] == loss.metrics["sign_accuracy"][1] == 3
    assert loss.count == 2  # the middle row has neither a preference nor a sign


def test_a_tie_trains_the_signs_alone():
    sign_BS = jnp.array([[1.0, 1.0]])

    def total(high_B, low_B):
        cost_BS = jnp.stack([high_B, low_B], axis=1)
        return cost.cost(high_B, low_B, jnp.zeros(1), cost_BS, sign_BS, sign_weight=1.0, score_l2=0.0).sum

    to_high, to_low = jax.jit(jax.grad(total, argnums=(0, 1)))(jnp.array([0.3]), jnp.array([0.3]))
    np.testing.assert_allclose(to_high, to_low, rtol=1e-6)  # a pair term would pull them apart


@pytest.mark.parametrize("rubbish", [17.25, jnp.inf])
def test_padding_rows_change_nothing_in_the_cost_loss(rubbish):
    sign_BS = jnp.array([[1.0, -1.0], [0.0, -1.0], [1.0, 1.0]])
    short = cost.cost(HIGH_B, LOW_B, ONES_B, COST_BS, sign_BS, sign_weight=0.5, score_l2=0.01)
    extra = jnp.array([rubbish])

    def padded(extra):
        high_B, low_B = jnp.append(HIGH_B, extra), jnp.append(LOW_B, extra)
        cost_BS = jnp.stack([high_B, low_B], axis=1)
        weight_B, sign_4S = jnp.append(ONES_B, 0.0), jnp.pad(sign_BS, ((0, 1), (0, 0)))
        loss = cost.cost(high_B, low_B, weight_B, cost_BS, sign_4S, sign_weight=0.5, score_l2=0.01)
        return loss.sum, loss

    gradient, loss = jax.jit(jax.grad(padded, has_aux=True))(extra)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), short, loss)
    assert gradient[0] == 0


def test_the_sign_terms_fix_the_zero_that_the_pair_term_leaves_free():
    sign_BS = jnp.array([[1.0, -1.0]])
    shift = jnp.array([2.5])

    def total(sign_weight, shift):
        high_B, low_B = HIGH_B[:1] + shift, LOW_B[:1] + shift
        cost_BS = jnp.stack([high_B, low_B], axis=1)
        return cost.cost(high_B, low_B, jnp.ones(1), cost_BS, sign_BS, sign_weight=sign_weight, score_l2=0.0).sum

    np.testing.assert_allclose(total(0.0, shift), total(0.0, 0 * shift), rtol=1e-6)
    assert total(1.0, shift) > total(1.0, 0 * shift) + 1.0


def test_gradients_are_those_of_finite_differences():
    sign_BS = jnp.array([[3.0, -1.0], [0.0, -2.0], [1.0, 1.0]])
    bradley_terry = jax.jit(lambda chosen_B, rejected_B: reward.reward(chosen_B, rejected_B, ONES_B, score_l2=0.1).sum)
    check_grads(bradley_terry, (CHOSEN_B, REJECTED_B), 1, modes=["rev"], rtol=1e-2)

    @jax.jit
    def total(high_B, low_B):
        cost_BS = jnp.stack([high_B, low_B], axis=1)
        return cost.cost(high_B, low_B, ONES_B, cost_BS, sign_BS, sign_weight=0.7, score_l2=0.1).sum

    check_grads(total, (HIGH_B, LOW_B), 1, modes=["rev"], rtol=1e-2)
