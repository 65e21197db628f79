"""What is measured inside the layer pass: taps against sums by hand, and that only what was reduced leaves a layer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vlm

from srlhfv_jax.config import LoraConfig
from srlhfv_jax.models import lora, measure, vlm

TEXT = dataclasses.replace(tiny_vlm.CONFIG.text, layers=3)
CONFIG = dataclasses.replace(tiny_vlm.CONFIG, text=TEXT)
LOCAL = dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, window=4, local_layers=(0, 2), sandwich=True, qk_norm=True))


def measured(config, params, reduce):
    """Jitted: (hidden states, what `reduce` makes of the taps) for the tiny prompts."""
    prompts = tiny_vlm.prompts()

    @jax.jit
    def run(params):
        features = vlm.encode_images(config, params, prompts.images)
        return vlm.measure(config, params, prompts.tokens_BP, prompts.positions_BP, prompts.mask_BP, features, reduce)

    return run(params)


def rms(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + TEXT.norm_eps) * scale


def test_taps_are_the_inputs_of_the_output_projections_and_the_stream_behind_them():
    params = tiny_vlm.backbone(0, CONFIG)
    hidden, taps = measured(CONFIG, params, lambda taps: taps)
    layers = jax.tree.map(np.asarray, params["text"]["layers"])
    heads, mlp, x = (np.asarray(tap, np.float64) for tap in taps)
    real = np.asarray(tiny_vlm.prompts().mask_BP)
    first = real.argmax(axis=1)
    rows = np.arange(len(real))
    for i in (1, 2):
        of = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
        mixed = x[i - 1] + heads[i].reshape(*real.shape, 16) @ of["self_attn"]["o_proj"]["kernel"]
        normed = rms(mixed, of["post_attention_layernorm"]["scale"])
        gate, up = (normed @ of["mlp"][name]["kernel"].T for name in ("gate_proj", "up_proj"))
        np.testing.assert_allclose(mlp[i][real], (gate / (1 + np.exp(-gate)) * up)[real], rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(x[i][real], (mixed + mlp[i] @ of["mlp"]["down_proj"]["kernel"])[real], rtol=2e-4, atol=2e-4)
        # The first token sees itself alone: what its heads mix is its own value, once for each head that shares it.
        value = rms(x[i - 1], of["input_layernorm"]["scale"])[rows, first] @ of["self_attn"]["v_proj"]["kernel"].T
        np.testing.assert_allclose(heads[i][rows, first], np.repeat(value.reshape(-1, 2, 4), 2, axis=1), rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(hidden[real], rms(x[2], np.asarray(params["text"]["norm"]["scale"]))[real], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("config", [CONFIG, LOCAL], ids=["plain", "local layers, norms behind, norms of queries"])
@pytest.mark.parametrize("unroll, remat", [(0, "none"), (0, "layer"), (1, "layer")])
def test_measuring_changes_no_hidden_state_and_is_the_same_however_layers_run(config, unroll, remat):
    params, prompts = tiny_vlm.backbone(0, config), tiny_vlm.prompts()
    here = dataclasses.replace(config, scan_unroll=unroll, remat=remat)
    hidden, found = measured(here, params, measure.of_units(prompts.mask_BP))
    _, expected = measured(config, params, measure.of_units(prompts.mask_BP))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
    features = vlm.encode_images(here, params, prompts.images)
    plain, _ = vlm.apply(here, params, prompts.tokens_BP, prompts.positions_BP, prompts.mask_BP, features)
    np.testing.assert_allclose(hidden, plain, rtol=1e-5, atol=1e-5)


def test_adapters_are_measured_as_the_merged_weights_are():
    backbone = tiny_vlm.backbone(0, CONFIG)
    adapter = lora.init(
        LoraConfig(rank=2, alpha=3.0, targets=("text/.*(q_proj|up_proj)",), int8=False, activated=False),
        backbone,
        jax.random.key(5),
    )
    adapter = jax.tree.map(lambda leaf: leaf + 0.3, adapter)
    reduce = measure.of_units(tiny_vlm.prompts().mask_BP)
    _, over = measured(CONFIG, lora.overlay(backbone, adapter), reduce)
    _, whole = measured(CONFIG, lora.merged(backbone, adapter), reduce)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-4), over, whole)


@pytest.mark.parametrize("unroll", [0, 1])
def test_nothing_of_all_layers_and_all_tokens_exists(unroll):
    config, prompts = dataclasses.replace(CONFIG, scan_unroll=unroll), tiny_vlm.prompts()
    params = tiny_vlm.backbone(0, CONFIG)

    def program(reduce) -> str:
        def run(params):
            return vlm.measure(config, params, prompts.tokens_BP, prompts.positions_BP, prompts.mask_BP, None, reduce)[1]

        return jax.jit(run).lower(params).compile().as_text()

    def has_all(text: str) -> bool:
        return any(f"f32[{shape}]" in text for shape in ("3,6,11,24", "3,66,24", "3,6,11,4,4", "3,6,11,16"))

    assert has_all(program(lambda taps: taps))  # as it would be seen
    assert not has_all(program(measure.of_units(prompts.mask_BP)))


def test_moments_of_two_batches_are_those_of_all_tokens():
    """Channel 0 far from 0, where a difference of sums of squares in float32 has no digit left."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(2, 3, 5, 4)) * [0.01, 1.5, 2.0, 0.0] + [1000.0, -0.5, 3.0, 0.25]
    mask = rng.random((2, 3, 5)) < 0.6
    parts = [measure.moments(jnp.asarray(v, jnp.float32), jnp.asarray(m)) for v, m in zip(values, mask)]
    both = measure.joined(*parts)
    tokens = values.astype(np.float32).astype(np.float64)[mask]
    assert both.count == mask.sum() and both.mean.dtype == np.float64
    np.testing.assert_allclose(both.mean, tokens.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(measure.variance(both), tokens.var(axis=0), rtol=2e-3, atol=1e-12)


def test_moments_without_tokens_are_zeros_and_add_nothing():
    none = measure.moments(jnp.full((1, 2, 3), jnp.inf), jnp.zeros((1, 2), bool))
    assert all(np.all(np.asarray(leaf) == 0) for leaf in none)
    one = measure.moments(jnp.asarray([[[1.5], [2.0]]]), jnp.asarray([[True, True]]))
    both = measure.joined(measure.Moments(np.zeros(()), np.zeros(1), np.zeros(1)), one)
    assert (both.count, both.mean[0], measure.variance(both)[0]) == (2, 1.75, 0.0625)
