"""A decoder of the Llama kind: one pre-norm layer, and the pass over the stack with or without a key-value cache.

Embedding and unembedding live in `vlm.py`, beside the image features that share the stream.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from srlhfv_jax.models import attention, kernels, stack
from srlhfv_jax.models.attention import KV, Read, Rotation, at
from srlhfv_jax.models.config import TextConfig, VLMConfig
from srlhfv_jax.models.layers import ACTIVATIONS, REVISION, Dense, RMSNorm
from srlhfv_jax.models.measure import Measure, Taps


class Sight(NamedTuple):
    """Positions as a layer reads them: the angles, and who sees whom."""

    rotation: Rotation
    sees: jax.Array | kernels.Span | None


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions, asked by the positions of `read`. New keys and values enter the cache
    first, at `slot`; without a slot, the cache holds what comes before, and stays as it is. `prompts`: keys and values
    that come before those of the cache, as in `vlm.apply`."""

    config: TextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD, rotation: Rotation, sees, kv: KV | None, layer, slot, read: Read, prompts: KV | None):
        c = self.config
        B, T, D = x_BTD.shape

        def project(name: str, heads: int, x_BTD):
            dense = Dense(heads * c.head_dim, "out", c.qkv_bias, self.dtype, name=name)
            return dense(x_BTD).reshape(B, -1, heads, c.head_dim)

        asking = Rotation(*(at(angle_BTh, read) for angle_BTh in rotation))
        q_BTHh, k_BTKh = project("q_proj", c.heads, at(x_BTD, read)), project("k_proj", c.kv_heads, x_BTD)
        if c.qk_norm:
            q_BTHh, k_BTKh = _norm(c, "q_norm")(q_BTHh), _norm(c, "k_norm")(k_BTKh)
        q_BHTh = attention.rotate(q_BTHh, asking).swapaxes(1, 2)
        k_BKTh = attention.rotate(k_BTKh, rotation).swapaxes(1, 2)
        v_BKTh = project("v_proj", c.kv_heads, x_BTD).swapaxes(1, 2)
        if kv is not None:
            times = attention.copies(c.heads, c.kv_heads)
            k_BKTh, v_BKTh = attention.copied(k_BKTh, times), attention.copied(v_BKTh, times)
            if slot is None:
                before = attention.read(kv, layer)
                k_BKTh, v_BKTh = (jnp.concatenate(both, axis=2) for both in zip(before, (k_BKTh, v_BKTh)))
                if not isinstance(read, int):
                    read = read + (k_BKTh.shape[2] - T)
            else:
                kv = attention.write(kv, k_BKTh, v_BKTh, layer, slot)
                if T == 1:  # a decode step looks at the whole cache; prefill at its own keys and values, which are all there is
                    k_BKTh, v_BKTh = attention.read(kv, layer)
        if prompts is None:
            mixed_BHTh = kernels.attend(q_BHTh, k_BKTh, v_BKTh, sees, c.query_scale, read)
        else:
            mixed_BHTh = attention.attend_after(q_BHTh, *attention.read(prompts, layer), k_BKTh, v_BKTh, sees, c.query_scale)
        mixed_BTHh = mixed_BHTh.swapaxes(1, 2)
        gain = (2 * c.layers) ** -0.5
        _tap(self, "heads", mixed_BTHh)
        output = Dense(D, "in", c.output_bias, self.dtype, gain, name="o_proj")
        return _revised(self, output(mixed_BTHh.reshape(B, -1, c.heads * c.head_dim))), kv


class GatedMLP(nn.Module):
    """down(act(gate x) * up x) (Shazeer, arXiv 2002.05202)."""

    config: TextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD):
        c = self.config
        gate_BTF = Dense(c.mlp, "out", c.mlp_bias, self.dtype, name="gate_proj")(x_BTD)
        up_BTF = Dense(c.mlp, "out", c.mlp_bias, self.dtype, name="up_proj")(x_BTD)
        gain = (2 * c.layers) ** -0.5
        product_BTF = ACTIVATIONS[c.activation](gate_BTF) * up_BTF
        _tap(self, "product", product_BTF)
        return Dense(c.width, "in", c.mlp_bias, self.dtype, gain, name="down_proj")(product_BTF)


class Layer(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); the result at the positions of `read`.

    Names are Llama's: `post_attention_layernorm` comes before the MLP.
    """

    config: TextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD, sight: Sight, kv: KV | None, layer, slot, read: Read, prompts: KV | None = None):
        c = self.config
        normed_BTD = _norm(c, "input_layernorm")(x_BTD)
        mixed_BTD, kv = SelfAttention(c, self.dtype, name="self_attn")(normed_BTD, *sight, kv, layer, slot, read, prompts)
        if c.sandwich:
            mixed_BTD = _norm(c, "attention_output_norm")(mixed_BTD)
        x_BTD = at(x_BTD, read) + mixed_BTD
        normed_BTD = _norm(c, "post_attention_layernorm")(x_BTD)
        changed_BTD = GatedMLP(c, self.dtype, name="mlp")(normed_BTD)
        if c.sandwich:
            changed_BTD = _norm(c, "mlp_output_norm")(changed_BTD)
        return _revised(self, x_BTD + changed_BTD), kv


def _revised(module: nn.Module, x_BTD):
    """The sum with the module's vector, where one lies over it (models/revision.py)."""
    if not module.has_variable("params", REVISION):
        return x_BTD
    revision_D = module.get_variable("params", REVISION)
    return x_BTD + revision_D.astype(x_BTD.dtype)[None, None]


def _norm(c: TextConfig, name: str | None = None) -> RMSNorm:
    return RMSNorm(c.norm_eps, c.norm_offset, name=name)


def _tap(module: nn.Module, name: str, value) -> None:
    """Lay an activation where `_measured` finds it; elsewhere this does nothing."""
    module.sow("intermediates", name, value, init_fn=lambda: None, reduce_fn=lambda _, new: new)


def _measured(layer: Layer, variables, inputs: tuple, measure: Measure) -> tuple[tuple, Any]:
    """The output of a layer, and what is measured of its taps."""
    (x_BTD, filled), state = layer.apply(variables, *inputs, mutable="intermediates")
    taps = state["intermediates"]
    return (x_BTD, filled), measure(Taps(taps["self_attn"]["heads"], taps["mlp"]["product"], x_BTD))


def decode(
    config: VLMConfig,
    params,
    x_BTD,
    everywhere: Sight,
    locally: Sight | None,
    kv: KV | None,
    slot,
    read: Read,
    prompts: KV | None = None,
    measure: Measure | None = None,
):
    """The stack and the final norm: hidden states at the positions of `read`, the cache with all new ones at `slot`, and what was
    measured in each layer, stacked.

    Where the stack is unrolled, its last layer computes nothing for the other positions but their keys and values. Without a slot,
    what is in `kv` comes before these tokens, and nothing is kept.

    Args:
        locally: what the local layers see instead; None: there are none.
        prompts: keys and values before those of the cache, of each prompt once: for one token of each row.
        measure: of the taps of every layer; None: nothing is.
    """
    layer = Layer(config.text, jnp.dtype(config.dtype))
    local_L = np.isin(np.arange(config.text.layers), config.text.local_layers)

    def sight(index) -> Sight:
        if locally is None:
            return everywhere
        if isinstance(index, int):
            return locally if local_L[index] else everywhere
        local = jnp.asarray(local_L)[index]
        return jax.tree.map(lambda near, far: jnp.where(local, near, far), locally, everywhere)

    everything = x_BTD.shape[1]

    def step(carry, weights, index):
        x_BTD, cache = carry
        final = isinstance(index, int) and index == config.text.layers - 1
        here = read if final else everything
        inputs = (x_BTD, sight(index), before or cache, index, slot, here, prompts)
        if measure is None:
            (x_BTD, filled), found = layer.apply({"params": weights}, *inputs), None
        else:
            (x_BTD, filled), found = _measured(layer, {"params": weights}, inputs, measure)
        return (x_BTD, None if before else filled), found

    before, cache = (kv, None) if slot is None else (None, kv)
    how = dict(unroll=config.scan_unroll, remat=config.remat)
    (x_BTD, cache), found = stack.measured(step, params["layers"], (x_BTD, cache), **how)
    if not stack.unrolled(params["layers"], config.scan_unroll):
        x_BTD = at(x_BTD, read)
    return _norm(config.text).apply({"params": params["norm"]}, x_BTD), cache, found
