"""Fused attention: the numbers of `attention.attend`, without an array of queries times keys in memory.

xla        `attention.attend` over an explicit bias, on any platform; decode steps always
splash     on TPUs: the Pallas kernel of JAX, which reads only those blocks of keys that some query sees
interpret  the same in Pallas's interpreter, slow, on any platform: for tests
cudnn      on GPUs, in half precision

Every mask of the models is one thing here, a `Span`: a query sees an interval of the keys of its own group. That makes of a causal
mask, a window, image tokens that see their whole image, padding and pictures side by side a few numbers for each position, which
differ from row to row at no cost. A kernel runs under `jax.shard_map`, on the rows and heads of one device.
"""

import functools
import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes, SegmentIds
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import DEFAULT_MASK_VALUE, SplashAttentionKernel
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from srlhfv_jax.errors import UserError
from srlhfv_jax.losses import products
from srlhfv_jax.models import attention
from srlhfv_jax.parallel.mesh import ROWS, target_device

KERNELS = ("auto", "xla", "splash", "interpret", "cudnn")
LANES = 128  # a block of splash is a multiple of this
LARGEST = 640  # block: one of all 577 positions of CLIP's tile, three of 512 of prompt 1024 + response 512
LONGEST = 1 << 15  # both ends of an interval are in one int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Span:
    """Query t sees the keys first..last (inclusive) of its own group. Every query sees itself, so nothing is undefined."""

    first_BT: Int[Array, "B T"]
    last_BT: Int[Array, "B T"]
    group_BT: Int[Array, "B T"]  # 0 or more
    kernel: str = field(metadata={"static": True})  # "splash", "interpret" or "cudnn"
    causal: bool = field(metadata={"static": True})  # nobody sees a later key


def choose(name: str, dtype: str, head_dim: int) -> str:
    """The kernel for the devices of the mesh that is set: "xla", "splash", "interpret" or "cudnn".

    "auto" takes the kernel of the platform where it can, XLA elsewhere and without a mesh (a kernel cannot see how its inputs lie).

    Raises:
        UserError: a kernel of another platform, or one that cannot compute in this dtype or with these heads.
    """
    device = target_device()
    if name == "auto":
        if jax.sharding.get_abstract_mesh().empty or device is None:
            return "xla"
        nvidia = device.platform == "gpu" and device.device_kind.startswith("NVIDIA")
        return "splash" if device.platform == "tpu" else "cudnn" if nvidia and not _cudnn_lacks(dtype, head_dim) else "xla"
    check(name, device.platform)
    lacks = _cudnn_lacks(dtype, head_dim) if name == "cudnn" else ""
    if lacks:
        raise UserError(f"config.model.attention is 'cudnn', which needs {lacks}: set it to 'auto' or 'xla'")
    return name


def check(name: str, platform: str) -> None:
    """Raise UserError where a kernel is unknown or not one of the platform ("cpu", "gpu", "tpu")."""
    if name not in KERNELS:
        raise UserError(f"config.model.attention must be one of {', '.join(map(repr, KERNELS))}, got {name!r}")
    needed = {"splash": "tpu", "cudnn": "gpu"}.get(name, platform)
    if needed != platform:
        raise UserError(
            f"config.model.attention is {name!r}, a kernel for {needed}, and the devices of the mesh are {platform}: "
            "set it to 'auto' or 'xla'"
        )


def _cudnn_lacks(dtype: str, head_dim: int) -> str:
    """The condition of cuDNN's flash attention that is not met; "" where it runs, on Ampere and later."""
    if dtype not in ("bfloat16", "float16"):
        return f"config.model.dtype 'bfloat16', not {dtype!r}"
    if head_dim > 128 or head_dim % 8:
        return f"heads of a multiple of 8 up to 128, not {head_dim}"
    return ""


def causal(
    kernel: str, mask_BT: Bool[Array, "B T"], window: int = 0, block_BT: Int[Array, "B T"] | None = None, backwards: int = 0
) -> Span:
    """The mask of `attention.causal` for real queries. Pads see pads.

    Args:
        block_BT: of `attention.blocks`: the tokens of a block lie side by side, so that what they see is an interval still.
    """
    here_BT = jnp.broadcast_to(jnp.arange(mask_BT.shape[1], dtype=jnp.int32)[None], mask_BT.shape)
    ends = attention.interval(mask_BT.shape[1], window, backwards)
    first_BT, last_BT = (jnp.broadcast_to(end_T[None], mask_BT.shape) for end_T in ends)
    if block_BT is not None:
        changes_BT = jnp.pad(block_BT[:, 1:] != block_BT[:, :-1], ((0, 0), (1, 1)), constant_values=True)  # T + 1 borders
        start_BT = jax.lax.cummax(jnp.where(changes_BT[:, :-1], here_BT, 0), axis=1)
        end_BT = jax.lax.cummin(jnp.where(changes_BT[:, 1:], here_BT, mask_BT.shape[1]), axis=1, reverse=True)
        first_BT = jnp.where(block_BT > 0, jnp.minimum(first_BT, start_BT), first_BT)
        last_BT = jnp.where(block_BT > 0, end_BT, last_BT)
    return Span(first_BT, last_BT, mask_BT.astype(jnp.int32), kernel, causal=block_BT is None and not backwards)


def together(kernel: str, group_BT: Int[Array, "B T"]) -> Span:
    """Everybody sees their whole group."""
    first_BT = jnp.zeros_like(group_BT)
    return Span(first_BT, first_BT + group_BT.shape[1] - 1, group_BT, kernel, causal=False)


def visible(span: Span) -> Bool[Array, "B T T"]:
    """The mask as an array: query (axis 1) sees key (axis 2)."""
    return _visible(span.first_BT, span.last_BT, span.group_BT, span.group_BT)


def attend(
    q_BHTh, k_BKTh, v_BKTh, sees: Span | Array | None, scale: float | None = None, read: attention.Read | None = None
) -> Float[Array, "B H T h"]:
    """As `attention.attend`, by the kernel of a span, or XLA for a bias. The queries are those of the positions `read`; None: of
    all."""
    B, H, queries, h = q_BHTh.shape
    keys = k_BKTh.shape[2]
    read = queries if read is None else read
    if isinstance(sees, Span) and queries < min(keys, LANES):  # a block would be padding for the most part
        sees = attention.bias(visible(sees))
    if not isinstance(sees, Span):
        asking = None if sees is None else attention.at(sees[:, 0, 0], read)[:, None, None]
        return attention.attend(q_BHTh, k_BKTh, v_BKTh, asking, scale)
    if keys >= LONGEST:
        raise UserError(f"sequences of {keys} tokens are longer than fused attention takes: set config.model.attention='xla'")
    if sees.kernel == "cudnn":
        kernel = functools.partial(_cudnn, is_causal=sees.causal and queries == keys)
    else:
        kernel = functools.partial(_splash, interpret=sees.kernel == "interpret")
    if products.precision(q_BHTh.dtype):
        kernel = _exactly(kernel)
    q_BHTh = q_BHTh * (h**-0.5 if scale is None else scale)
    asking = (attention.at(x, read) for x in (sees.first_BT, sees.last_BT, sees.group_BT))
    return _by_device(kernel, q_BHTh, k_BKTh, v_BKTh, *asking, sees.group_BT)


def _by_device(kernel, q_BHTh, k_BKTh, v_BKTh, *positions_BT):
    """Run a kernel on each device's rows and heads. What the mesh does not divide is whole on every device.

    Where `tensor` divides the query heads and not the key-value heads, these are repeated until it does, and no further.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(q_BHTh, k_BKTh, v_BKTh, *positions_BT)
    (B, H), K = q_BHTh.shape[:2], k_BKTh.shape[1]
    rows: tuple[str, ...] = ()
    for axis in ROWS:
        if B % (math.prod(mesh.shape[name] for name in rows) * mesh.shape[axis]) == 0:
            rows += (axis,)
    heads = "tensor" if H % mesh.shape["tensor"] == 0 else None
    if heads:
        k_BKTh, v_BKTh = (attention.copied(x, attention.copies(H, K)) for x in (k_BKTh, v_BKTh))
    by_head, by_row = P(rows, heads), P(rows)
    specs = (by_head,) * 3 + (by_row,) * len(positions_BT)
    # Replication is not tracked through a Pallas call.
    return jax.shard_map(kernel, in_specs=specs, out_specs=by_head, check_vma=False)(q_BHTh, k_BKTh, v_BKTh, *positions_BT)


def _exactly(kernel):
    """A kernel whose products are of float32 (losses/products.py). It takes no `precision`, and its backward pass is traced later
    than its call: what both find set says it."""
    highest = functools.partial(jax.default_matmul_precision, "highest")

    @jax.custom_vjp
    def exact(*arrays):
        with highest():
            return kernel(*arrays)

    def forward(*arrays):
        with highest():
            return jax.vjp(kernel, *arrays)

    def backward(derivative, d_out):
        with highest():
            return derivative(d_out)

    exact.defvjp(forward, backward)
    return exact


def _splash(q_BHTh, k_BKTh, v_BKTh, first_BT, last_BT, asking_BT, asked_BT, *, interpret: bool):
    """The kernel on one device, its arrays padded to whole blocks.

    JAX's own constructors make the mask of each block on the host, or, where masks differ by row, as arrays of queries times keys.
    Here the kernel gets the ends of each query's interval where it expects the query's index, and a function that reads them.
    """
    queries, keys = q_BHTh.shape[2], k_BKTh.shape[2]
    (block_q, rows), (block_k, columns) = _blocks(queries), _blocks(keys)
    long_q, long_k = rows * block_q, columns * block_k
    q, k, v = _pad(q_BHTh, long_q, 2), _pad(k_BKTh, long_k, 2), _pad(v_BKTh, long_k, 2)
    first_BT, last_BT = (_pad(x, long_q, 1, mode="edge") for x in (first_BT, last_BT))
    asking_BT, asked_BT = (_pad(x, n, 1, constant_values=-1) for x, n in ((asking_BT, long_q), (asked_BT, long_k)))

    start = jnp.arange(columns, dtype=jnp.int32)[None] * block_k
    lowest = jnp.min(first_BT.reshape(-1, rows, block_q), axis=(0, 2))[:, None]  # of all sequences: they share one grid
    highest = jnp.max(last_BT.reshape(-1, rows, block_q), axis=(0, 2))[:, None]
    visited = (lowest < start + block_k) & (highest >= start)
    sizes = BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_kv_compute=block_k,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        block_kv_dkv_compute=block_k,
        block_q_dq=block_q,
        block_kv_dq=block_k,
    )

    def one_row(q, k, v, first_T, last_T, asking_T, asked_T):
        interval_T = first_T << 16 | last_T
        by_query, by_key = (
            MaskInfo(_nearest(visited, axis)[None], None, visited[None].astype(jnp.int32), None, interval_T) for axis in (1, 0)
        )
        kernel = SplashAttentionKernel(
            by_query,
            by_query,
            by_key,
            block_sizes=sizes,
            is_mqa=False,
            save_residuals=False,
            mask_value=DEFAULT_MASK_VALUE,
            attn_logits_soft_cap=None,
            residual_checkpoint_name=None,
            mask_function=_inside,
            interpret=interpret,
        )
        return kernel(q, k, v, SegmentIds(asking_T, asked_T))

    return jax.vmap(one_row)(q, k, v, first_BT, last_BT, asking_BT, asked_BT)[:, :, :queries]


def _inside(interval, key):
    """Inside the kernel: does the interval hold the key?"""
    return (interval >> 16 <= key) & (key <= (interval & (1 << 16) - 1))


def _nearest(visited, axis: int):
    """For each pair of blocks the index along `axis` of a pair that is visited: its own, or else one beside, so that a block is not
    fetched in vain."""
    places = jax.lax.broadcasted_iota(jnp.int32, visited.shape, axis)
    count = visited.shape[axis]
    first = jnp.min(jnp.where(visited, places, count - 1), axis=axis, keepdims=True)
    last = jnp.max(jnp.where(visited, places, 0), axis=axis, keepdims=True)
    return jnp.clip(places, *(jnp.broadcast_to(end, visited.shape) for end in (first, jnp.maximum(first, last))))


def _blocks(length: int) -> tuple[int, int]:
    """Size and number of the fewest equal blocks that hold `length` positions."""
    count = -(-length // LARGEST)
    return -(-length // (count * LANES)) * LANES, count


def _cudnn(q_BHTh, k_BKTh, v_BKTh, first_BT, last_BT, asking_BT, asked_BT, *, is_causal: bool):
    """Flash attention of cuDNN. The mask is an array [B, 1, T, T] here, one for all heads.

    Args:
        is_causal: the mask is false above the diagonal, and those blocks need not be read.
    """
    queries, keys = q_BHTh.shape[2], k_BKTh.shape[2]
    even_q, even_k = queries + queries % 2, keys + keys % 2  # its backward pass with a mask takes no odd lengths
    q, k, v = (_pad(x, n, 2).swapaxes(1, 2) for x, n in ((q_BHTh, even_q), (k_BKTh, even_k), (v_BKTh, even_k)))
    first_BT, last_BT, asking_BT = (_pad(x, even_q, 1, mode="edge") for x in (first_BT, last_BT, asking_BT))
    seen_BTT = _visible(first_BT, last_BT, asking_BT, _pad(asked_BT, even_k, 1, constant_values=-1))
    mask = seen_BTT[:, None]
    mixed = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=is_causal, scale=1.0, implementation="cudnn")
    return mixed.swapaxes(1, 2)[:, :, :queries]


def _visible(first_BT, last_BT, asking_BT, asked_BT):
    key_11T = jnp.arange(asked_BT.shape[1], dtype=jnp.int32)[None, None]
    inside_BTT = (first_BT[:, :, None] <= key_11T) & (key_11T <= last_BT[:, :, None])
    return inside_BTT & (asking_BT[:, :, None] == asked_BT[:, None, :])


def _pad(x, length: int, axis: int, **how):
    """Lengthen one axis at its end; how: as of `jnp.pad`."""
    return jnp.pad(x, [(0, length - x.shape[axis] if i == axis else 0) for i in range(x.ndim)], **how)
