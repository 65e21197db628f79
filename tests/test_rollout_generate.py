"""Sampling: what is generated is what a full forward pass predicts, and nothing else depends on padding, mesh or early exit."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vlm import CONFIG, EOS, IMAGE, PAD, VOCAB, VOCABULARY, backbone, prompts

from srlhfv_jax.batches import Rollout
from srlhfv_jax.config import LoraConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.models import lora, quantize, sequences, vlm
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.ppo_lag import selftest
from srlhfv_jax.rollout import sampling
from srlhfv_jax.rollout.generate import begin, generate, go_on
from srlhfv_jax.rollout.sampling import RowSampling, Sampling, choose, choose_by_row

R = 9


def sample(batch, *, seed=0, params=None, temperature=1.0, early_exit=True, length=R, microbatches=1) -> Rollout:
    run = jax.jit(
        functools.partial(
            generate,
            CONFIG,
            response_length=length,
            vocabulary=VOCABULARY,
            sampling=Sampling(temperature),
            early_exit=early_exit,
            microbatches=microbatches,
        )
    )
    return run(backbone() if params is None else params, batch, jax.random.key(seed))


def train_logp(params, rollout: Rollout, temperature: float = 1.0):
    return sequences.response_logp(
        CONFIG, {"backbone": params}, rollout, rollout.features, temperature=temperature, never_V=VOCABULARY.never_V(VOCAB)
    )[0]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_first_ratio_is_one(temperature):
    rollout = sample(prompts(), temperature=temperature)
    np.testing.assert_allclose(train_logp(backbone(), rollout, temperature), rollout.logp_BR, atol=2e-5)


def test_greedy_decoding_with_the_cache_equals_the_argmax_of_full_forwards():
    params, batch = backbone(), prompts()
    rollout = sample(batch, temperature=0.0)
    tokens_BT, mask_BT = np.array(rollout.tokens_BT), np.array(rollout.mask_BT)
    hidden_BTD, _ = vlm.apply(CONFIG, params, rollout.tokens_BT, rollout.positions_BT, rollout.mask_BT, rollout.features)
    logits_BRV = np.array(vlm.logits(CONFIG, params, hidden_BTD[:, -R - 1 : -1]))
    logits_BRV[..., list(VOCABULARY.never)] = -np.inf
    best_BR = logits_BRV.argmax(-1)
    real_BR = np.array(rollout.response_mask_BR)
    assert real_BR.sum() > 20
    np.testing.assert_array_equal(best_BR[real_BR], tokens_BT[:, -R:][real_BR])
    assert mask_BT[:, -R:][real_BR].all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["plain", "adapter", "int8"])
def test_weights_laid_out_for_decoding_are_the_same_model(kind, tied):
    """Layers one by one, kernels and the output matrix turned (`vlm.for_decoding`): a kernel of this width is as long as wide, and
    would not be missed by its shape."""
    config = dataclasses.replace(CONFIG, scan_unroll=0, text=dataclasses.replace(CONFIG.text, tied_head=tied))
    params, batch = backbone(config=config), prompts()
    if kind == "adapter":
        wanted = LoraConfig(rank=2, alpha=4.5, targets=("text/layers/.*_proj",), int8=False, activated=False)
        adapter = jax.tree.map(lambda x: x + 0.3, lora.init(wanted, params, jax.random.key(3)))
        params = lora.overlay(params, adapter)
    elif kind == "int8":
        params = quantize.int8(params)
    turned = vlm.for_decoding(config, params)
    assert len(turned["text"]["layers"]) == CONFIG.text.layers
    assert ("kernel" in turned["text"]["layers"][0]["self_attn"]["q_proj"]) == (kind == "int8")

    def logits(params):
        hidden_BPD, _ = vlm.apply(config, params, batch.tokens_BP, batch.positions_BP, batch.mask_BP)
        return vlm.logits(config, params, hidden_BPD)

    np.testing.assert_allclose(logits(turned), logits(params), rtol=1e-5, atol=2e-5)


def test_adding_pad_columns_changes_nothing():
    plain, padded = sample(prompts(), seed=3), sample(prompts(pad=5), seed=3)
    np.testing.assert_array_equal(plain.tokens_BT[:, -R:], padded.tokens_BT[:, -R:])
    np.testing.assert_allclose(plain.logp_BR, padded.logp_BR, atol=1e-5)


def test_early_exit_changes_nothing_but_time():
    batch = prompts()
    for a, b in zip(jax.tree.leaves(sample(batch)), jax.tree.leaves(sample(batch, early_exit=False))):
        np.testing.assert_array_equal(a, b)


def test_a_row_ends_at_its_first_end_token_and_is_pad_after_it():
    rollout = sample(prompts(rows=12), length=24)
    tokens_BR, mask_BR = np.array(rollout.tokens_BT[:, -24:]), np.array(rollout.response_mask_BR)
    assert 0 < np.array(rollout.ended_B).sum()
    for tokens, mask, ended in zip(tokens_BR, mask_BR, np.array(rollout.ended_B)):
        count = mask.sum()
        assert mask[:count].all() and (tokens[count:] == PAD).all()
        assert (tokens[:count] == EOS).sum() == int(ended)
        assert not ended or tokens[count - 1] == EOS


def test_image_pad_and_begin_tokens_are_never_sampled():
    rollout = sample(prompts(rows=12), seed=5, length=24)
    drawn = np.array(rollout.tokens_BT[:, -24:])[np.array(rollout.response_mask_BR)]
    assert not np.isin(drawn, VOCABULARY.never).any()
    assert np.isfinite(np.array(rollout.logp_BR)).all()


def test_the_same_key_gives_the_same_rollout_and_another_key_another():
    batch = prompts()
    one, same, other = sample(batch, seed=1), sample(batch, seed=1), sample(batch, seed=2)
    np.testing.assert_array_equal(one.tokens_BT, same.tokens_BT)
    assert (np.array(one.tokens_BT) != np.array(other.tokens_BT)).any()


@pytest.mark.parametrize("microbatches", [1, 2])
def test_eight_devices_sample_what_one_device_samples(eight_devices, microbatches):
    batch, params = prompts(rows=8), backbone()
    expected = sample(batch, params=params, seed=4)
    with jax.set_mesh(eight_devices):
        host = hosts.global_batch(jax.tree.map(np.asarray, batch), eight_devices)
        got = sample(host, params=rules.place(params, eight_devices), seed=4, microbatches=microbatches)
    chex.assert_trees_all_close(got, expected, atol=2e-5, rtol=1e-5)
    np.testing.assert_array_equal(got.tokens_BT, expected.tokens_BT)


@pytest.mark.parametrize("microbatches", [2, 3, 6])
def test_prompts_in_parts_get_the_same_answers(microbatches):
    got, expected = sample(prompts(), seed=4, microbatches=microbatches), sample(prompts(), seed=4)
    chex.assert_trees_all_close(got, expected, atol=2e-5, rtol=1e-5)
    np.testing.assert_array_equal(got.tokens_BT, expected.tokens_BT)
    other = sample(prompts(), seed=5, microbatches=microbatches)
    assert (np.array(other.tokens_BT) != np.array(expected.tokens_BT)).any()


def test_the_picture_changes_the_answer_only_where_there_is_one():
    batch = prompts()
    swapped = batch._replace(images=jax.tree.map(lambda x: x[::-1] * 1.7, batch.images))
    one, other = sample(batch, temperature=0.0), sample(swapped, temperature=0.0)
    differs_B = np.any(np.array(one.tokens_BT != other.tokens_BT), axis=1) | np.any(
        np.array(one.logp_BR != other.logp_BR), axis=1
    )
    assert differs_B[[0, 1, 3, 4]].all() and not differs_B[[2, 5]].any()


def test_top_one_equals_greedy_and_top_k_and_top_p_keep_the_likeliest():
    logp_BV = jax.nn.log_softmax(jnp.array([[0.3, 2.1, -0.7, 1.4], [1.9, -0.2, 0.8, 0.1]]))
    uniforms = jax.random.uniform(jax.random.key(0), (200, 2))

    def drawn(sampling):
        return np.array(jax.vmap(lambda uniform_B: choose(uniform_B, logp_BV, sampling))(uniforms))

    np.testing.assert_array_equal(drawn(Sampling(top_k=1)), np.tile([1, 0], (200, 1)))
    np.testing.assert_array_equal(choose(uniforms[0], logp_BV, Sampling(temperature=0.0)), [1, 0])
    assert set(drawn(Sampling(top_k=2))[:, 0]) == {1, 3}
    assert set(drawn(Sampling(top_p=0.5))[:, 0]) == {1}
    assert set(drawn(Sampling(top_p=0.85))[:, 0]) == {1, 3}


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    """1,000 rows of 300 tokens (more than two blocks) at evenly spread uniforms: each token's count is its share, within one row."""
    rng = np.random.default_rng(0)
    weight_V = rng.exponential(size=300).astype(np.float32) ** 3
    weight_V[[0, 127, 128, 255, 299]] = 0.0  # at the ends of the blocks and of the last, padded one
    uniform_B = (np.arange(1000, dtype=np.float32) + 0.5) / 1000
    drawn_B = sampling.draw(jnp.asarray(uniform_B), jnp.asarray(np.tile(weight_V, (1000, 1))))
    count_V = np.bincount(drawn_B, minlength=300)
    np.testing.assert_allclose(count_V, 1000 * weight_V / weight_V.sum(), atol=1.001)
    assert (count_V[weight_V == 0] == 0).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_no_forbidden_token_is_drawn_at_either_end_of_the_uniform(uniform):
    weight_BV = np.zeros((3, 200), np.float32)
    weight_BV[0, 131], weight_BV[1, [3, 150]], weight_BV[2, 5:120] = 1e-20, (0.7, 0.3), 1e-3
    drawn_B = np.asarray(sampling.draw(jnp.full(3, uniform), jnp.asarray(weight_BV)))
    assert (weight_BV[np.arange(3), drawn_B] > 0).all()


def test_a_uniform_of_zero_draws_no_token_that_hardly_any_other_number_would():
    weight_V = np.zeros(300, np.float32)
    weight_V[[3, 150, 290]] = 1e-30, 1e-9, 0.7
    uniform_B = jnp.asarray([0.0, 2.0**-23], jnp.float32)
    assert sampling.draw(uniform_B, jnp.asarray(np.tile(weight_V, (2, 1)))).tolist() == [290, 290]


@pytest.mark.parametrize(("dtype", "rounding", "wrong"), [("float32", 3e-4, 3e-3), ("bfloat16", 0.06, 0.3)])
def test_a_gap_as_large_as_rounding_is_a_warning_where_it_is_corrected_for_and_a_larger_one_never(
    dtype, rounding, wrong, monkeypatch, capsys
):
    config = dataclasses.replace(CONFIG, dtype=dtype)
    mask_BR = jnp.array([[True, True, False], [True, False, False]])
    rollout = Rollout(None, None, None, mask_BR, jnp.full((2, 3), -1.25), None, None)

    def off_by(gap: float, recompute: bool) -> float:
        logp_BR = jnp.where(mask_BR, -1.25 - gap, 7.0)
        monkeypatch.setattr(selftest.sequences, "response_logp", lambda *_, **__: (logp_BR, None))
        return selftest.ratio(config, {}, rollout, temperature=1.0, vocabulary=VOCABULARY, recompute=recompute)

    assert off_by(rounding, True) == pytest.approx(rounding, rel=1e-3)
    assert f"warning: self-test: {'largest' if dtype == 'float32' else 'mean'} |log ratio|" in capsys.readouterr().err
    with pytest.raises(UserError, match="old_logp=recompute corrects"):
        off_by(rounding, False)
    for recompute in (False, True):
        for gap in (wrong, float("nan")):
            with pytest.raises(UserError, match="no rounding") as found:
                off_by(gap, recompute)
            assert "recompute" not in str(found.value)
    assert off_by(rounding / 10, False) == pytest.approx(rounding / 10, rel=1e-2)
    assert not capsys.readouterr().err


def test_the_self_test_catches_a_wrong_temperature_and_a_missing_placeholder():
    params, rollout = {"backbone": backbone()}, sample(prompts())
    args = dict(vocabulary=VOCABULARY, recompute=False)
    assert selftest.ratio(CONFIG, params, rollout, temperature=1.0, **args) < 1e-4
    for recompute in (False, True):
        with pytest.raises(UserError, match="log ratio"):
            selftest.ratio(CONFIG, params, rollout, temperature=0.8, **args | {"recompute": recompute})
    selftest.placeholders(CONFIG, *jax.tree.map(np.asarray, (rollout, prompts().images)))
    first = int(np.argmax(np.array(rollout.tokens_BT[1]) == IMAGE))
    broken = rollout._replace(tokens_BT=rollout.tokens_BT.at[1, first].set(7))
    with pytest.raises(UserError, match="row 1 .* has 3 image placeholders"):
        selftest.placeholders(CONFIG, *jax.tree.map(np.asarray, (broken, prompts().images)))


def by_row(settings: list[tuple[float, float, int]], uniform_BR, batch, blocks=(R,)):
    temperature, top_p, length = zip(*settings)
    rows = RowSampling(np.array(temperature, np.float32), np.array(top_p, np.float32), np.array(length, np.int32))
    first, more = (jax.jit(functools.partial(run, CONFIG, vocabulary=VOCABULARY)) for run in (begin, go_on))
    state, none = first(backbone(), batch, uniform_BR, rows), np.zeros(len(settings), bool)
    for until in blocks:
        state = more(backbone(), batch._replace(images=None), uniform_BR, rows, state, np.int32(until), none)
    return state


def test_rows_with_equal_settings_and_numbers_are_the_rollout_of_those_settings():
    batch = prompts()
    B = batch.tokens_BP.shape[0]
    uniform_RB = jax.vmap(lambda t: jax.random.uniform(jax.random.fold_in(jax.random.key(4), t), (B,)))(jnp.arange(R))
    for temperature in (0.0, 0.75, 1.0):
        wanted = sample(batch, seed=4, temperature=temperature)
        rows = by_row([(temperature, 1.0, R)] * B, uniform_RB.T, batch)
        np.testing.assert_array_equal(rows.tokens_BR, wanted.tokens_BT[:, -R:])
        np.testing.assert_array_equal(rows.mask_BR, wanted.response_mask_BR)
        np.testing.assert_allclose(rows.logp_BR, wanted.logp_BR, atol=1e-6)


def test_a_row_does_not_see_its_neighbours_settings_nor_where_decoding_paused():
    batch = prompts()
    B = batch.tokens_BP.shape[0]
    uniform_BR = np.random.default_rng(1).random((B, R), np.float32)
    mixed = [(0.25 * (row + 1), 1.0 - 0.125 * row, 2 + row) for row in range(B)]
    together = by_row(mixed, uniform_BR, batch)
    for row in range(B):
        same = by_row([mixed[row]] * B, uniform_BR, batch, blocks=range(row + 1, R + row + 1, row + 1))
        np.testing.assert_array_equal(together.tokens_BR[row], same.tokens_BR[row])
        assert together.mask_BR[row].sum() <= mixed[row][2]


def test_a_row_that_is_said_to_have_stopped_draws_no_more():
    batch = prompts()
    B = batch.tokens_BP.shape[0]
    uniform_BR = np.random.default_rng(2).random((B, R), np.float32)
    rows = RowSampling(*(np.full(B, value, kind) for value, kind in ((0.75, np.float32), (1.0, np.float32), (R, np.int32))))
    given = (CONFIG, backbone(), batch._replace(images=None), uniform_BR, rows)
    state = begin(CONFIG, backbone(), batch, uniform_BR, rows, vocabulary=VOCABULARY)
    on = jax.jit(functools.partial(go_on, vocabulary=VOCABULARY), static_argnums=0)
    free, half = on(*given, state, np.int32(R), np.zeros(B, bool)), on(*given, state, np.int32(R), np.arange(B) == 0)
    np.testing.assert_array_equal(half.tokens_BR[1:], free.tokens_BR[1:])
    assert half.mask_BR[0].sum() == 1 and not half.alive_B[0]
    assert on(*given, state, np.int32(R), np.ones(B, bool)).step == 1


def test_a_nucleus_of_each_row_keeps_its_likeliest_tokens():
    logp_BV = np.log(np.array([[0.5, 0.25, 0.125, 0.125]] * 4, np.float32))
    rows = RowSampling(np.ones(4, np.float32), np.array([1.0, 0.75, 0.5, 0.0], np.float32), np.full(4, 9, np.int32))
    drawn = [choose_by_row(np.full(4, u, np.float32), logp_BV, rows).tolist() for u in (0.01, 0.6, 0.99)]
    assert drawn == [[0, 0, 0, 0], [1, 0, 0, 0], [3, 1, 0, 0]]
