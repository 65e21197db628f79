"""Attention over explicit masks, rotary position embedding with its scaling variants, and the key-value cache of one stack.

Plain XLA on every platform. `attend` is the one place a fused kernel would replace.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from srlhfv_jax.models.config import RopeConfig

MASKED = -1e30  # added to a masked score: exp gives exactly 0, and a row with nothing to attend to stays finite


class Rotation(NamedTuple):
    """Rotary angles of every position, once for all layers."""

    cos_BTh: Float[Array, "B T h/2"]
    sin_BTh: Float[Array, "B T h/2"]


class KV(NamedTuple):
    """Keys and values of all layers; the layer scan carries the pair and writes it in place."""

    k_LBTKh: Float[Array, "L B T K h"]
    v_LBTKh: Float[Array, "L B T K h"]


def bias(mask_BTT: Bool[Array, "B T T"]) -> Float[Array, "B 1 1 T T"]:
    """What is added to the scores: 0 where query (axis 1) may see key (axis 2), hugely negative elsewhere."""
    return jnp.where(mask_BTT, 0.0, MASKED)[:, None, None].astype(jnp.float32)


def causal(mask_BT: Bool[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Each position sees the real tokens up to itself."""
    T = mask_BT.shape[1]
    return jnp.tri(T, dtype=bool)[None] & mask_BT[:, None, :]


def attend(q_BTHh, k_BTKh, v_BTKh, bias_B11TT=None) -> Float[Array, "B T H h"]:
    """softmax(q kᵀ / sqrt(h) + bias) v, with H / K query heads to each key-value head. The softmax is float32."""
    B, T, H, h = q_BTHh.shape
    K = k_BTKh.shape[2]
    q_BTKGh = (q_BTHh * h**-0.5).reshape(B, T, K, H // K, h)
    scores = jnp.einsum("btkgh,bskh->bkgts", q_BTKGh, k_BTKh, preferred_element_type=jnp.float32)
    if bias_B11TT is not None:
        scores = scores + jnp.broadcast_to(bias_B11TT, scores.shape)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BTKh.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v_BTKh).reshape(B, T, H, h)


def write(kv: KV, k_BTKh, v_BTKh, layer, slot) -> KV:
    """Put the keys and values of new positions at `slot` of `layer`, in place."""
    at = (layer, 0, slot, 0, 0)
    return KV(
        jax.lax.dynamic_update_slice(kv.k_LBTKh, k_BTKh[None].astype(kv.k_LBTKh.dtype), at),
        jax.lax.dynamic_update_slice(kv.v_LBTKh, v_BTKh[None].astype(kv.v_LBTKh.dtype), at),
    )


def read(kv: KV, layer) -> tuple[Float[Array, "B T K h"], Float[Array, "B T K h"]]:
    """All slots of one layer."""
    return tuple(jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False) for stacked in kv)


def rotation(config: RopeConfig, head_dim: int, positions_BT: Int[Array, "B T"]) -> Rotation:
    """Angles position * frequency, and the attention factor of yarn folded into both."""
    frequency_h, factor = frequencies(config, head_dim)
    angle_BTh = positions_BT[:, :, None].astype(jnp.float32) * jnp.asarray(frequency_h)[None, None, :]
    return Rotation(jnp.cos(angle_BTh) * factor, jnp.sin(angle_BTh) * factor)


def rotate(x_BTHh, rotation: Rotation):
    """Rotate each pair (x_i, x_{i + h/2}) by its angle: the half-split convention of Hugging Face checkpoints."""
    left, right = jnp.split(x_BTHh, 2, axis=-1)
    cos, sin = (jnp.broadcast_to(angle[:, :, None].astype(x_BTHh.dtype), left.shape) for angle in rotation)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def frequencies(config: RopeConfig, head_dim: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies [h/2] (float32, computed on the host) and the factor on cos and sin.

    default: theta^(-2i/h). linear: divided by `factor`. llama3, yarn (Peng et al., arXiv 2309.00071): long wavelengths are divided by
    `factor`, short ones kept, those between interpolated; yarn also scales attention. dynamic: the default up to the trained length, the
    only lengths it is offered for (beyond, the frequencies would change while a sequence grows).
    """
    exponent_h = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    base_h = (np.float32(1.0) / np.float32(config.theta) ** exponent_h).astype(np.float32)
    if config.kind in ("default", "dynamic"):
        return base_h, 1.0
    if config.kind == "linear":
        return base_h / np.float32(config.factor), 1.0
    if config.kind == "llama3":
        return _llama3(config, base_h), 1.0
    if config.kind == "yarn":
        scale = config.attention_factor
        return _yarn(config, head_dim, base_h), 0.1 * math.log(config.factor) + 1.0 if scale is None else scale
    raise ValueError(f"unknown rope kind {config.kind!r}")


def _llama3(config: RopeConfig, base_h: np.ndarray) -> np.ndarray:
    turns_h = config.original_max_positions * base_h / (2 * math.pi)  # full turns within the original context
    smooth_h = (turns_h - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    smooth_h = np.clip(smooth_h, 0.0, 1.0)
    return ((1 - smooth_h) * base_h / config.factor + smooth_h * base_h).astype(np.float32)


def _yarn(config: RopeConfig, head_dim: int, base_h: np.ndarray) -> np.ndarray:
    def dimension(turns: float) -> float:
        """The (fractional) index whose wavelength makes that many turns within the original context."""
        return head_dim * math.log(config.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    low = max(math.floor(dimension(config.beta_fast)), 0)
    high = min(math.ceil(dimension(config.beta_slow)), head_dim - 1)
    ramp_h = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / max(high - low, 0.001), 0.0, 1.0)
    return (base_h / config.factor * ramp_h + base_h * (1 - ramp_h)).astype(np.float32)
