"""Attention over explicit masks, rotary position embedding with its scaling variants, and the key-value cache of one stack.

Plain XLA on every platform. `attend` is the one place a fused kernel would replace.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from srlhfv_jax.losses import products
from srlhfv_jax.models.config import RopeConfig
from srlhfv_jax.parallel import order

MASKED = -1e30  # added to a masked score: exp gives exactly 0, and a row with nothing to attend to stays finite


Read = int | Int[Array, "B Q"]  # positions that are read: so many last ones, or these of each row


class Rotation(NamedTuple):
    """Rotary angles of every position, once for all layers."""

    cos_BTh: Float[Array, "B T h/2"]
    sin_BTh: Float[Array, "B T h/2"]


class KV(NamedTuple):
    """Keys and values of all layers, carried through the stack and written in place.

    One array for a scanned stack; one for each layer of an unrolled one, where slicing would copy them for every token.
    """

    k: Float[Array, "L B K T h"] | tuple[Float[Array, "B K T h"], ...]
    v: Float[Array, "L B K T h"] | tuple[Float[Array, "B K T h"], ...]


def bias(mask_BTT: Bool[Array, "B T T"]) -> Float[Array, "B 1 1 T T"]:
    """The term added to the scores: 0 where query (axis 1) may see key (axis 2), hugely negative elsewhere."""
    return jnp.where(mask_BTT, 0.0, MASKED)[:, None, None].astype(jnp.float32)


def at(x_BT: Array, read: Read) -> Array:
    """Values at the positions that are read, on axis 1."""
    if isinstance(read, int):
        return x_BT[:, -read:]
    return jnp.take_along_axis(x_BT, read.reshape(*read.shape, *[1] * (x_BT.ndim - 2)), axis=1)


def interval(length: int, window: int = 0, backwards: int = 0) -> tuple[Int[Array, "T"], Int[Array, "T"]]:
    """The first and the last key that each of `length` positions sees, but for padding.

    Args:
        window: so many keys at most; 0: no limit.
        backwards: of `vlm.apply`. Those positions see the ones behind them, to the end of the prompt; nobody else sees them.
    """
    assert not (window and backwards), "of a window's keys some would lie at the far end of the prompt"
    here_T = jnp.arange(length, dtype=jnp.int32)
    before_T = here_T < backwards
    first_T = jnp.where(before_T, here_T, jnp.maximum(backwards, here_T - window + 1) if window else backwards)
    return first_T, jnp.where(before_T, length - backwards - 1, here_T)


def causal(
    mask_BT: Bool[Array, "B T"], window: int = 0, block_BT: Int[Array, "B T"] | None = None, backwards: int = 0
) -> Bool[Array, "B T T"]:
    """Each position sees the real tokens of its `interval`, and all of its block, if it is in one.

    Args:
        block_BT: number of the block of each token; 0: in none.
    """
    first_T, last_T = interval(mask_BT.shape[1], window, backwards)
    key_T = jnp.arange(mask_BT.shape[1], dtype=jnp.int32)[None]
    seen = ((first_T[:, None] <= key_T) & (key_T <= last_T[:, None]))[None]
    if block_BT is not None:
        seen |= (block_BT[:, :, None] == block_BT[:, None, :]) & (block_BT[:, :, None] > 0)
    return seen & mask_BT[:, None, :]


def blocks(inside_BT: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Numbers from 1 for the runs of true, 0 elsewhere."""
    starts_BT = inside_BT & ~jnp.pad(inside_BT, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(inside_BT, jnp.cumsum(starts_BT, axis=1, dtype=jnp.int32), 0)


def attend(q_BHTh, k_BKTh, v_BKTh, bias_B11TT=None, scale: float | None = None) -> Float[Array, "B H T h"]:
    """softmax(q kᵀ scale + bias) v, the scale 1 / sqrt(h) unless given, with H / K query heads to each key-value head. The softmax is float32.

    There may be fewer queries than keys; the bias has a row for each query and a column for each key.
    """
    B, H, T, h = q_BHTh.shape
    K = k_BKTh.shape[1]
    # The query heads of one key-value head are stacked along the positions: every product is then one plain batch of matrices.
    stacked = (q_BHTh * (h**-0.5 if scale is None else scale)).reshape(B, K, H // K * T, h)
    arrays = (stacked, k_BKTh, v_BKTh) if bias_B11TT is None else (stacked, k_BKTh, v_BKTh, bias_B11TT)
    if T > 1 and B % 2 == 0 and _one_cpu():
        # XLA multiplies a batch of small matrices on one core; two batches it multiplies on two.
        halves = zip(*(jnp.split(x, 2) for x in arrays))
        mixed = jnp.concatenate([_mix(*half) for half in halves])
    else:
        mixed = _mix(*arrays)
    return mixed.reshape(B, H, T, h)


def attend_after(
    q_BHTh, prompt_k_NKPh, prompt_v_NKPh, k_BKRh, v_BKRh, bias_B11TT, scale: float | None = None
) -> Float[Array, "B H T h"]:
    """`attend` for one query of each row, which sees its prompt and then the row's own keys: T is 1. Each prompt serves B / N neighbours
    and is nowhere copied for them: all their queries meet its keys in one product. Without a derivative.

    Args:
        bias_B11TT: a column for each key of the prompt, then of the row.
    """
    B, H, _, h = q_BHTh.shape
    N, K, P, _ = prompt_k_NKPh.shape
    groups, heads = B // N, H // K  # rows of a prompt, query heads of a key-value head
    q = (q_BHTh * (h**-0.5 if scale is None else scale)).reshape(B, K, heads, h)

    def by_prompt(x):
        return x.reshape(N, groups, K, heads, -1).swapaxes(1, 2).reshape(N, K, groups * heads, -1)

    def by_row(x):
        return x.reshape(N, K, groups, heads, -1).swapaxes(1, 2).reshape(B, K, heads, -1)

    of_prompt, own = by_row(_matmul(by_prompt(q), prompt_k_NKPh, 3, 3, jnp.float32)), _matmul(q, k_BKRh, 3, 3, jnp.float32)
    weights = jax.nn.softmax(jnp.concatenate([of_prompt, own], axis=-1) + bias_B11TT[:, 0], axis=-1).astype(v_BKRh.dtype)
    mixed = by_row(_matmul(by_prompt(weights[..., :P]), prompt_v_NKPh, 3, 2, jnp.float32))
    mixed = mixed + _matmul(weights[..., P:], v_BKRh, 3, 2, jnp.float32)
    return mixed.astype(v_BKRh.dtype).reshape(B, H, 1, h)


def _one_cpu() -> bool:
    """Whether the mesh is one device, a CPU: rows are then nowhere split."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size == 1 and order.on_cpu()


@jax.custom_vjp
def _mix(q, k, v, bias=None):
    """softmax(q kᵀ + bias) v for q [B, K, G queries, h] and k, v [B, K, keys, h].

    The derivative is written out because automatic differentiation transposes the [T, T] weights, which costs more than the
    products themselves; here only [T, h] arrays are transposed. The bias is a mask and has no gradient.
    """
    return _mix_forward(q, k, v, bias)[0]


def _mix_forward(q, k, v, bias):
    scores = _matmul(q, k, 3, 3, jnp.float32)
    if bias is not None:
        B, K, rows, keys = scores.shape
        by_head = scores.reshape(B, K, -1, bias.shape[3], keys)
        scores = (by_head + jnp.broadcast_to(bias, by_head.shape)).reshape(B, K, rows, keys)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return _matmul(weights, v, 3, 2, v.dtype), (q, k, v, weights)


def _mix_backward(saved, d_out):
    q, k, v, weights = saved
    d_weights = _matmul(d_out, v, 3, 3, jnp.float32)
    weights32 = weights.astype(jnp.float32)
    d_scores = weights32 * (d_weights - jnp.sum(weights32 * d_weights, axis=-1, keepdims=True))
    d_scores = d_scores.astype(weights.dtype)
    d_q = _matmul(d_scores, k, 3, 2, q.dtype)
    d_k = _matmul(q, d_scores, 2, 2, k.dtype).swapaxes(2, 3)
    d_v = _matmul(d_out, weights, 2, 2, v.dtype).swapaxes(2, 3)
    return d_q, d_k, d_v, None


_mix.defvjp(_mix_forward, _mix_backward)


def _matmul(a, b, axis_a: int, axis_b: int, dtype):
    """Sum over one axis of each, batched over the first two of both."""
    how = dict(precision=products.precision(a.dtype), preferred_element_type=dtype)
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((0, 1), (0, 1))), **how)


def copies(heads: int, kv_heads: int) -> int:
    """Copies of each key-value head that must be there so that the mesh's tensor axis divides them all.

    1 without a mesh, where it divides them anyway, and where it does not even divide the query heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or heads % mesh.shape["tensor"]:
        return 1
    return math.lcm(kv_heads, mesh.shape["tensor"]) // kv_heads


def copied(x_BKTh, times: int):
    """Each head `times` times, a head on each device. Left to itself, the partitioner cuts heads in two, and puts the halves of the
    whole cache together again for every token."""
    if times == 1:
        return x_BKTh
    free = PartitionSpec.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(jnp.repeat(x_BKTh, times, axis=1), PartitionSpec(free, "tensor", free, free))


def write(kv: KV, k_BKTh, v_BKTh, layer, slot) -> KV:
    """Put the keys and values of new positions at `slot` of `layer`, in place. It may be another slot in each row."""

    def store(stored, new):
        if isinstance(stored, tuple):
            return (*stored[:layer], put(stored[layer], new.astype(stored[layer].dtype), slot, axis=2), *stored[layer + 1 :])
        if jnp.ndim(slot) == 0:
            return jax.lax.dynamic_update_slice(stored, new[None].astype(stored.dtype), (layer, 0, 0, slot, 0))
        return stored.at[layer, jnp.arange(len(slot)), :, slot].set(new[:, :, 0].astype(stored.dtype))

    return KV(store(kv.k, k_BKTh), store(kv.v, v_BKTh))


def put(stored_BT: Array, new_BT: Array, slot, *, axis: int) -> Array:
    """`new_BT` at the place `slot` of `axis`, in place; or, of each row, one value at a place of its own."""
    if jnp.ndim(slot) == 0:
        return jax.lax.dynamic_update_slice_in_dim(stored_BT, new_BT, slot, axis)
    whole = (slice(None),) * (axis - 1)
    return stored_BT.at[(jnp.arange(len(slot)), *whole, slot)].set(jnp.squeeze(new_BT, axis))


def read(kv: KV, layer) -> tuple[Float[Array, "B K T h"], Float[Array, "B K T h"]]:
    """All slots of one layer."""

    def get(stored):
        return stored[layer] if isinstance(stored, tuple) else jax.lax.dynamic_index_in_dim(stored, layer, keepdims=False)

    return get(kv.k), get(kv.v)


def rotation(config: RopeConfig, head_dim: int, positions_BT: Int[Array, "B T *axes"]) -> Rotation:
    """Angles position * frequency, and the attention factor of yarn folded into both.

    With `sections`, each frequency has its own of three positions: of the first section the time, then the row, then the column.
    """
    frequency_h, factor = frequencies(config, head_dim)
    if config.sections:
        positions_BTh = positions_BT[:, :, np.repeat(np.arange(len(config.sections)) % 3, config.sections)]
    else:
        positions_BTh = positions_BT[:, :, None]
    angle_BTh = positions_BTh.astype(jnp.float32) * jnp.asarray(frequency_h)[None, None, :]
    return Rotation(jnp.cos(angle_BTh) * factor, jnp.sin(angle_BTh) * factor)


def rotate(x_BTHh, rotation: Rotation):
    """Rotate each pair (x_i, x_{i + h/2}) by its angle: the half-split convention of Hugging Face checkpoints."""
    left, right = jnp.split(x_BTHh, 2, axis=-1)
    cos, sin = (jnp.broadcast_to(angle[:, :, None].astype(x_BTHh.dtype), left.shape) for angle in rotation)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def frequencies(config: RopeConfig, head_dim: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies [h/2] (float32, computed on the host) and the factor on cos and sin.

    default: theta^(-2i/h). linear: divided by `factor`. llama3, yarn (Peng et al., arXiv 2309.00071): long wavelengths are
    divided by `factor`, short ones kept, those between interpolated; yarn also scales attention. dynamic: the default up to the
    trained length, the only lengths it is offered for (beyond, the frequencies would change while a sequence grows).
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
        return _yarn(config, head_dim, base_h), _yarn_attention(config)
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


def _yarn_attention(config: RopeConfig) -> float:
    if config.attention_factor is not None:
        return config.attention_factor
    return 0.1 * math.log(config.factor) + 1.0 if config.factor > 1 else 1.0
