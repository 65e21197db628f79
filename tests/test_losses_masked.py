"""Means are pairs (sum, count): masked equals sliced, and nothing off the mask is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srlhfv_jax.losses import masked, sft

X_BR = np.array([[0.5, -1.25, 3.5, 9.0], [2.25, 0.75, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]], np.float32)
MASK_BR = np.array([[True, True, True, False], [True, True, False, False], [False] * 4])


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("rubbish", [np.nan, -np.inf])
def test_what_is_off_the_mask_reaches_neither_value_nor_gradient(reduction, rubbish):
    mean = jax.jit(jax.value_and_grad(lambda x_BR: masked.reduce(1.5 * x_BR, MASK_BR, reduction)[0]))
    clean_value, clean_gradient = mean(np.where(MASK_BR, X_BR, np.float32(0)))
    value, gradient = mean(np.where(MASK_BR, X_BR, np.float32(rubbish)))
    assert value == clean_value
    np.testing.assert_array_equal(gradient, clean_gradient)
    assert np.all(np.array(gradient)[~MASK_BR] == 0)


def test_token_mean_weighs_tokens_and_sequence_mean_weighs_sequences():
    total, count = masked.token_mean(X_BR, MASK_BR)
    np.testing.assert_allclose([total, count], [0.5 - 1.25 + 3.5 + 2.25 + 0.75, 5])
    total, count = masked.sequence_mean(X_BR, MASK_BR)  # rows 0 and 1; row 2 has no token and is not counted
    np.testing.assert_allclose([total, count], [2.75 / 3 + 3.0 / 2, 2], rtol=1e-6)


def test_sums_of_microbatches_equal_the_whole_batch():
    parts = [masked.token_mean(X_BR[i : i + 1], MASK_BR[i : i + 1]) for i in range(3)]
    whole = masked.token_mean(X_BR, MASK_BR)
    np.testing.assert_allclose([sum(p[0] for p in parts), sum(p[1] for p in parts)], whole, rtol=1e-6)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="'token', 'sequence' or 'fixed', got 'mean'"):
        masked.reduce(X_BR, MASK_BR, "mean")


def test_scaling_divides_by_the_spread_and_does_not_shift_zero():
    scaled_BR = np.array(masked.scale(X_BR, MASK_BR))
    values = X_BR[MASK_BR]
    np.testing.assert_allclose(scaled_BR[MASK_BR], values / values.std(), rtol=1e-6)
    np.testing.assert_array_equal(np.sign(scaled_BR), np.where(MASK_BR, np.sign(X_BR), 0.0))


def test_scaling_leaves_a_constant_stream_alone():
    for constant in (0.0, 0.1, -3.7):
        x_B = jnp.full((6,), constant)
        np.testing.assert_array_equal(masked.scale(x_B, jnp.ones(6, bool)), x_B)


def test_scaled_costs_do_not_depend_on_the_unit_of_cost():
    cost_B = jnp.array([-0.75, 0.25, 1.5, 2.25])
    every = jnp.ones(4, bool)
    np.testing.assert_allclose(masked.scale(cost_B * 37.5, every), masked.scale(cost_B, every), rtol=1e-6)


def test_sft_is_the_mean_negative_log_likelihood_of_response_tokens():
    total, count = sft.sft(jnp.log(jnp.array([[0.5, 0.25, 0.9]])), jnp.array([[True, True, False]]))
    np.testing.assert_allclose([total, count], [np.log(2) + np.log(4), 2], rtol=1e-6)
