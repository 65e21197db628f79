"""A revision is one vector a layer that acts from the prompt's last token on: what it adds, where, and where it does not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_pairs import pairs
from tiny_vlm import CONFIG, VOCAB, VOCABULARY, backbone, prompts

from srlhfv_jax.models import revision, sequences, vlm
from srlhfv_jax.parallel import rules
from srlhfv_jax.rollout import generate as sampler
from srlhfv_jax.rollout.generate import generate
from srlhfv_jax.rollout.sampling import Sampling
from srlhfv_jax.weights import directions

BEGINS = (9,)
REVISED = dataclasses.replace(CONFIG, activation=BEGINS)  # layers are scanned
L, D, H, R = CONFIG.text.layers, CONFIG.text.width, CONFIG.text.heads, 8
VECTOR_LD = jnp.asarray(np.random.default_rng(3).normal(size=(L, D)), jnp.float32)


def revised(site: str, strength: float = 1.0):
    return revision.overlay(backbone(), site, strength * VECTOR_LD)


@functools.partial(jax.jit, static_argnums=0)
def sample(config, params, batch):
    how = dict(response_length=R, vocabulary=VOCABULARY, sampling=Sampling(1.0))
    return generate(config, params, batch, jax.random.key(3), **how)


@functools.partial(jax.jit, static_argnums=0)
def logp(config, params, rollout):
    how = dict(never_V=VOCABULARY.never_V(config.text.vocab))
    return sequences.response_logp(config, {"backbone": params}, rollout, rollout.features, **how)[0]


@functools.partial(jax.jit, static_argnums=0)
def read(config, params, batch):
    """Hidden state after the prompts, and the cache with them."""
    features = vlm.encode_images(config, params, batch.images)
    cache = vlm.init_cache(config, *batch.tokens_BP.shape, jnp.float32)
    return sampler.read_prompts(config, params, batch, features, cache)


@pytest.mark.parametrize("site", revision.SITES)
@pytest.mark.parametrize("scan_unroll", [0, 1])
def test_what_is_sampled_is_what_a_full_pass_predicts(site, scan_unroll):
    config = dataclasses.replace(REVISED, scan_unroll=scan_unroll)
    rollout = sample(config, revised(site), prompts(rows=12))
    assert np.asarray(rollout.response_mask_BR).sum() > 20
    np.testing.assert_allclose(logp(config, revised(site), rollout), rollout.logp_BR, atol=1e-4)
    assert np.abs(logp(CONFIG, backbone(), rollout) - rollout.logp_BR).max() > 0.05
    scanned = logp(REVISED, revised(site), rollout)
    np.testing.assert_allclose(scanned, rollout.logp_BR, atol=1e-4)


def test_strength_0_is_no_revision():
    params = backbone()
    for site in revision.SITES:
        assert revision.overlay(params, site, 0 * VECTOR_LD) is params
        assert revision.overlay(params, site, VECTOR_LD) is not params


@pytest.mark.parametrize("site", revision.SITES)
@pytest.mark.parametrize("strength", [0.3, -70.0])
def test_all_tokens_of_the_prompt_before_its_last_are_read_as_ever(site, strength):
    batch = prompts()
    (hidden, cache), (plain_hidden, plain) = (read(REVISED, params, batch) for params in (revised(site, strength), backbone()))
    for ours, theirs in zip(cache.kv, plain.kv):  # [L, B, K, P, h]
        np.testing.assert_array_equal(ours[..., :-1, :], theirs[..., :-1, :])
        np.testing.assert_array_equal(ours[0], theirs[0])  # what enters the first layer is the token itself
        assert np.abs(ours[1, ..., -1, :] - theirs[1, ..., -1, :]).max() > 0.01
    assert np.abs(hidden - plain_hidden).max() > 0.01


@pytest.mark.parametrize("site", revision.SITES)
def test_one_prefix_serves_every_strength(site):
    rollout = sample(REVISED, backbone(), prompts())
    prefixes = [sequences.prefix(REVISED, {"backbone": revised(site, s)}, rollout, rollout.features) for s in (0.0, 2.5)]
    jax.tree.map(np.testing.assert_array_equal, *prefixes)


def own(rollout):
    """The tokens that are revised: the last one of the prompt, and those of the answer."""
    start = rollout.tokens_BT.shape[1] - R - 1
    return [x[:, start:] for x in (rollout.tokens_BT, rollout.positions_BT, rollout.mask_BT)]


def test_of_heads_it_is_a_bias_behind_the_output_projection_there():
    """The model with that bias, over the prefix that the model without it leaves."""
    rollout = sample(REVISED, backbone(), prompts())
    prefix = sequences.prefix(REVISED, {"backbone": backbone()}, rollout, rollout.features)
    biased = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, output_bias=True))
    params = jax.tree.map(lambda leaf: leaf, backbone())
    params["text"]["layers"]["self_attn"]["o_proj"]["bias"] = VECTOR_LD
    expected = vlm.apply(biased, params, *own(rollout), before=prefix)[0]
    found = vlm.apply(REVISED, revised("heads"), *own(rollout), before=prefix)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_of_heads_it_is_what_shifted_heads_make_of_it():
    """sum_j O_j (a_j + s_j) - sum_j O_j a_j, head by head, for any a."""
    rng = np.random.default_rng(0)
    kernel, shift, a = rng.normal(size=(L, D, D)), rng.normal(size=(L, H, D // H)), rng.normal(size=(L, H, D // H))
    blocks = kernel.reshape(L, H, D // H, D)
    expected = sum(np.einsum("lh,lhd->ld", a[:, j] + shift[:, j], blocks[:, j]) for j in range(H))
    expected -= sum(np.einsum("lh,lhd->ld", a[:, j], blocks[:, j]) for j in range(H))
    np.testing.assert_allclose(revision.of_heads(kernel, jnp.asarray(shift)), expected, atol=1e-5)


def test_of_a_layer_it_is_linear_in_the_strength_at_the_site():
    rollout = sample(REVISED, backbone(), prompts())
    prefix = sequences.prefix(REVISED, {"backbone": backbone()}, rollout, rollout.features)

    def stream(strength: float):
        params = revision.overlay(backbone(), "layer", strength * VECTOR_LD)
        return vlm.measure(REVISED, params, *own(rollout), None, lambda taps: taps.x_BTD, before=prefix)[1]

    plain, real = stream(0.0), np.asarray(own(rollout)[2])
    for strength in (0.5, -3.0):
        moved = np.asarray(stream(strength) - plain)
        added = strength * np.asarray(VECTOR_LD)
        np.testing.assert_allclose(moved[0][real], np.broadcast_to(added[0], moved[0][real].shape), atol=1e-5)
    assert np.abs(moved[1][real] - added[1]).max() > 0.1  # later layers have read what was moved


@pytest.mark.parametrize("site", revision.SITES)
def test_on_eight_devices_it_is_the_same(site, eight_devices):
    batch = prompts(rows=8)
    expected = sample(REVISED, revised(site), batch)
    with jax.set_mesh(eight_devices):
        found = sample(REVISED, rules.place(revised(site), eight_devices), batch)
    np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)
    np.testing.assert_allclose(found.logp_BR, expected.logp_BR, atol=1e-4)


@pytest.mark.parametrize("site", revision.SITES)
def test_activations_are_those_at_the_last_token_before_the_end(site):
    """Of each answer alone, cut there: its last position."""
    batch = pairs(prompts(rows=3), [[4, 7], [2, 5], [6, 6]], R, words=(4, VOCAB))
    features = vlm.encode_images(CONFIG, backbone(), batch.images)
    found = sequences.end_activations(CONFIG, {"backbone": backbone()}, batch, features, site)
    P = batch.tokens_BST.shape[2] - R
    for side in (0, 1):
        for row in range(3):
            until = P + int(batch.response_mask_BSR[row, side].sum()) - 1
            cut = [x[row : row + 1, side, :until] for x in (batch.tokens_BST, batch.positions_BST, batch.mask_BST)]
            here = jax.tree.map(lambda x: x[row : row + 1], features)
            _, taps = vlm.measure(CONFIG, backbone(), *cut, here, lambda taps: taps)
            expected = taps.x_BTD[:, 0, -1, None] if site == "layer" else taps.heads_BTHh[:, 0, -1]
            np.testing.assert_allclose(found[:, row, side], expected, atol=1e-5)


def activations(*values):
    """One layer of two heads of one channel each: of the second, minus the same."""
    return np.stack([np.array(values), -np.array(values)], axis=-1)[None, :, :, None]


def test_directions_by_hand():
    """Means 2.5 and 0 of the first head: a shift of 2.5. Over 4, 1, 2, 3, -1, 0, 0, 1: mean 1.25, mean of squares 4."""
    held_B = np.array([False, False, True, True])
    found = directions.fit(activations(4, 1, 2, 3), activations(-1, 0, 0, 1), held_B)
    np.testing.assert_allclose(found.shift_LHh[0, :, 0], [2.5, -2.5])
    np.testing.assert_allclose(found.spread_LH[0], [np.sqrt(4 - 1.25**2)] * 2)
    np.testing.assert_allclose(directions.unit(found.shift_LHh)[0, :, 0], [1, -1])
    # fitted on means 2.5 and -0.5: the middle is 1. Held out, 2 and 3 are beyond, 0 is not, and 1 is at it, which counts as wrong
    np.testing.assert_allclose(found.accuracy_LH[0], [0.75, 0.75])


def test_a_probe_looks_past_what_varies_most():
    """Fisher's normal: the first channel tells safe from unsafe by 1, and the second, which is 100 times as wide, not at all."""
    rng = np.random.default_rng(0)
    wide_B = 100 * rng.normal(size=(2, 80))
    safe, unsafe = (np.stack([np.full(80, at), wide], axis=1)[None, :, None] for at, wide in zip((0.5, -0.5), wide_B))
    found = directions.fit(safe, unsafe, np.arange(80) % 4 == 0)
    assert found.accuracy_LH[0, 0] < 0.9  # the ridge is a share of the mean variance
    mixed = [side @ np.diag([1, 0.01]) for side in (safe, unsafe)]
    assert directions.fit(*mixed, np.arange(80) % 4 == 0).accuracy_LH[0, 0] > 0.95


def test_the_best_units_come_first_and_others_stay_as_they_are():
    accuracy_LH = np.array([[0.5, 0.75], [0.9, 0.75]])
    assert directions.best(accuracy_LH, 1) == ((1, 0),)
    assert directions.best(accuracy_LH, 3) == ((1, 0), (0, 1), (1, 1))
    shift = np.full((2, 2, 3), 0.25)
    expected = np.zeros((2, 2, 3))
    expected[1, 0] = expected[0, 1] = 0.25
    np.testing.assert_array_equal(directions.chosen(shift, ((1, 0), (0, 1))), expected)
