"""Log-probabilities: one definition, with or without chunks, clean gradients, and no [B, R, V] array when chunked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from srlhfv_jax.losses import logprob, sft

B, R, D, V = 3, 7, 5, 11
NEVER_V = jnp.arange(V) >= V - 2


@pytest.fixture(name="case")
def _case():
    rng = np.random.default_rng(3)
    hidden_BRD, unembed_VD = rng.normal(size=(B, R, D)), rng.normal(size=(V, D))
    tokens_BR = rng.integers(0, V - 2, size=(B, R))
    return jnp.asarray(hidden_BRD, jnp.float32), jnp.asarray(unembed_VD, jnp.float32), jnp.asarray(tokens_BR, jnp.int32)


def test_log_softmax_sums_to_one_over_the_allowed_ids():
    logits = jnp.array([[0.3, -1.7, 2.2, 0.9]])
    never_V = jnp.array([False, True, False, False])
    logp = logprob.log_softmax(logits, temperature=0.7, never_V=never_V)
    assert logp[0, 1] == -jnp.inf
    z = np.array([0.3, 2.2, 0.9]) / 0.7
    np.testing.assert_allclose(logp[0, jnp.array([0, 2, 3])], z - np.log(np.exp(z).sum()), rtol=1e-6)


def test_temperature_divides_the_logits():
    logits, never_V = jnp.array([[0.3, -1.7, 2.2]]), jnp.zeros(3, bool)
    hot = logprob.log_softmax(logits, temperature=2.5, never_V=never_V)
    np.testing.assert_allclose(hot, logprob.log_softmax(logits / 2.5, temperature=1.0, never_V=never_V), rtol=1e-6)


def test_chosen_logp_is_the_log_softmax_at_the_token(case):
    hidden_BRD, unembed_VD, tokens_BR = case
    chosen = jax.jit(lambda *arrays: logprob.chosen_logp(*arrays, temperature=0.8, never_V=NEVER_V))
    logp_BR, entropy_BR = chosen(hidden_BRD, unembed_VD, tokens_BR)
    full_BRV = logprob.log_softmax(hidden_BRD @ unembed_VD.T, temperature=0.8, never_V=NEVER_V)
    expected = np.take_along_axis(np.array(full_BRV), np.array(tokens_BR)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(logp_BR, expected, rtol=1e-5, atol=1e-6)
    allowed = np.array(full_BRV)[..., : V - 2]
    np.testing.assert_allclose(entropy_BR, -(np.exp(allowed) * allowed).sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_chunked_equals_whole_in_value_and_gradient(case, chunk):
    hidden_BRD, unembed_VD, tokens_BR = case
    weight_BR = np.random.default_rng(5).normal(size=(B, R)).astype(np.float32)

    def total(hidden_BRD, unembed_VD, chunk):
        logp_BR, entropy_BR = logprob.chosen_logp(
            hidden_BRD, unembed_VD, tokens_BR, temperature=1.3, never_V=NEVER_V, chunk=chunk
        )
        return jnp.sum(weight_BR * logp_BR) + 0.4 * jnp.sum(entropy_BR), (logp_BR, entropy_BR)

    gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True), static_argnums=2)
    whole, cut = gradient(hidden_BRD, unembed_VD, 0), gradient(hidden_BRD, unembed_VD, chunk)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), whole, cut)


def test_gradients_of_logp_and_entropy_are_those_of_finite_differences(case):
    hidden_BRD, unembed_VD, tokens_BR = case

    @jax.jit
    def f(hidden_BRD, unembed_VD):
        return logprob.chosen_logp(hidden_BRD, unembed_VD, tokens_BR, temperature=0.9, never_V=NEVER_V, chunk=2)

    check_grads(f, (hidden_BRD, unembed_VD), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("chunk", [0, 2])
def test_a_forbidden_token_has_logp_minus_infinity_and_off_the_mask_no_gradient(case, chunk):
    hidden_BRD, unembed_VD, tokens_BR = case
    tokens_BR = tokens_BR.at[:, -2:].set(V - 1)  # pads, which may never be sampled
    mask_BR = jnp.arange(R)[None, :] < jnp.full((B, 1), R - 2)

    def loss(hidden_BRD, unembed_VD):
        logp_BR, _ = logprob.chosen_logp(hidden_BRD, unembed_VD, tokens_BR, temperature=1.0, never_V=NEVER_V, chunk=chunk)
        total, count = sft.sft(logp_BR, mask_BR)
        return total / count, logp_BR

    results = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden_BRD, unembed_VD)
    (value, logp_BR), (to_hidden, to_unembed) = jax.tree.map(np.array, results)
    assert np.isfinite(value)
    assert np.all(logp_BR[:, -2:] == -np.inf)
    assert np.all(np.isfinite(to_hidden)) and np.all(np.isfinite(to_unembed))
    assert np.all(to_hidden[:, -2:] == 0) and np.any(to_hidden[:, :-2] != 0)
    assert np.all(to_unembed[-2:] == 0)


def test_chunks_keep_memory_below_one_array_of_logits_in_both_directions():
    rows, length, width, vocab, chunk = 4, 64, 4, 2048, 4
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, length, width), (vocab, width))]
    tokens_BR, never_V = jnp.zeros((rows, length), jnp.int32), jnp.zeros(vocab, bool)

    def temporaries(chunk):
        def total(hidden_BRD, unembed_VD):
            logp_BR, entropy_BR = logprob.chosen_logp(
                hidden_BRD, unembed_VD, tokens_BR, temperature=1.0, never_V=never_V, chunk=chunk
            )
            return jnp.sum(logp_BR), entropy_BR

        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        return step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    logits_bytes = 4 * rows * length * vocab
    assert temporaries(0) >= logits_bytes  # the measure sees the array it is meant to see
    assert temporaries(chunk) < logits_bytes / 2


@pytest.mark.parametrize("chunk", [0, 3])
def test_sharded_rows_and_vocabulary_equal_one_device(eight_devices, chunk):
    rng = np.random.default_rng(8)
    hidden_BRD, unembed_VD = (rng.normal(size=s).astype(np.float32) for s in ((8, R, D), (12, D)))
    tokens_BR = rng.integers(0, 10, size=(8, R)).astype(np.int32)

    def total(hidden_BRD, unembed_VD, tokens_BR):
        never_V = jnp.arange(12) >= 10
        logp_BR, _ = logprob.chosen_logp(hidden_BRD, unembed_VD, tokens_BR, temperature=0.7, never_V=never_V, chunk=chunk)
        return jnp.sum(logp_BR), logp_BR

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    rows, vocabulary = (jax.NamedSharding(eight_devices, jax.P(axes)) for axes in (("data", "fsdp"), "tensor"))
    sharded = [jax.device_put(x, s) for x, s in ((hidden_BRD, rows), (unembed_VD, vocabulary), (tokens_BR, rows))]
    alone, together = step(hidden_BRD, unembed_VD, tokens_BR), step(*sharded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), alone, together)


def test_bfloat16_states_give_float32_log_probabilities_near_the_float32_ones(case):
    hidden_BRD, unembed_VD, tokens_BR = case
    exact, _ = logprob.chosen_logp(hidden_BRD, unembed_VD, tokens_BR, temperature=1.0, never_V=NEVER_V)
    low, entropy = logprob.chosen_logp(hidden_BRD.astype(jnp.bfloat16), unembed_VD, tokens_BR, temperature=1.0, never_V=NEVER_V)
    assert low.dtype == entropy.dtype == jnp.float32
    np.testing.assert_allclose(low, exact, atol=0.1)
    assert jnp.any(low != exact)


def test_an_integer_array_of_states_is_refused(case):
    hidden_BRD, unembed_VD, tokens_BR = case
    with pytest.raises(AssertionError):
        logprob.chosen_logp(hidden_BRD.astype(jnp.int32), unembed_VD, tokens_BR, temperature=1.0, never_V=NEVER_V)
