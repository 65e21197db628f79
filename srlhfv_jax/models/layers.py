"""The Linen layers every part of the model is made of: dense, two norms, embedding; and the activations by their config names.

One rule for kernels: the first axis is the one tensor parallelism splits. So a column-parallel kernel (q, k, v, gate, up, fc1:
outputs are split) is (out, in) as in a Hugging Face file and loads without a transpose; a row-parallel one (o, down, fc2:
inputs are split) is (in, out).

Parameters may be float32 while activations are bfloat16; they are cast where they are used. Norms compute in float32.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from srlhfv_jax.losses import products

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
}

INPUT_FIRST = ("o_proj", "out_proj", "down_proj", "fc2")  # kernels (in, out) by their layers' names; all others are (out, in)
REVISION = "revision"  # a vector that is added to activations (models/revision.py)
KERNEL_IN_OUT = "kernel_in_out"  # a kernel (out, in), or the output matrix, with its inputs first: `vlm.for_decoding`


class Dense(nn.Module):
    """x -> x W + b over the last axis, and what an adapter adds to it where one lies over the kernel (models/lora.py)."""

    features: int
    split: str  # "out": kernel (out, in); "in": kernel (in, out)
    bias: bool
    dtype: jnp.dtype
    gain: float = 1.0  # random start: std = gain / sqrt(in)

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        out_first = self.split == "out"
        shape = (self.features, width) if out_first else (width, self.features)
        if self.has_variable("params", KERNEL_IN_OUT):
            kernel, inputs = self.get_variable("params", KERNEL_IN_OUT), 0
        else:
            kernel, inputs = self.param("kernel", nn.initializers.normal(self.gain * width**-0.5), shape), int(out_first)
        # As one matrix: in the backward pass a product summed over two leading axes would first be copied into transposed order.
        rows = x.reshape(-1, width)
        contracted, exact = (((1,), (inputs,)), ((), ())), products.precision(self.dtype)
        if self.has_variable("params", "kernel_scale"):  # whole numbers (models/quantize.py)
            y = jax.lax.dot_general(rows, kernel.astype(self.dtype), contracted, exact, preferred_element_type=jnp.float32)
            y = (y * self.get_variable("params", "kernel_scale")[None]).astype(self.dtype)
        else:
            y = jax.lax.dot_general(rows, kernel.astype(self.dtype), contracted, exact)
        if self.has_variable("params", "lora_a"):
            a, b, scale = (self.get_variable("params", f"lora_{part}").astype(self.dtype) for part in ("a", "b", "scale"))
            y = y + jnp.matmul(jnp.matmul(rows, a.T, precision=exact), (b * scale).T, precision=exact)
        y = y.reshape(*x.shape[:-1], self.features)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
        return y


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + scale) (Zhang and Sennrich, arXiv 1910.07467). With an offset, all of it in float32."""

    epsilon: float
    offset: float = 0.0

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.constant(1.0 - self.offset), (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        if self.offset:
            return (normed * jnp.broadcast_to(self.offset + scale.astype(jnp.float32), x.shape)).astype(x.dtype)
        return normed.astype(x.dtype) * jnp.broadcast_to(scale.astype(x.dtype), x.shape)


class LayerNorm(nn.Module):
    """(x - mean) / std * scale + bias (Ba et al., arXiv 1607.06450)."""

    epsilon: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.epsilon)
        scale, bias = (jnp.broadcast_to(p.astype(jnp.float32), x.shape) for p in (scale, bias))
        return (normed * scale + bias).astype(x.dtype)


class Embedding(nn.Module):
    """A table of rows, looked up by id."""

    rows: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, ids):
        table = self.param("embedding", nn.initializers.normal(0.02), (self.rows, self.width))
        # Ids past the table (where some families put their placeholder) are clamped: those rows are replaced anyway.
        return jnp.take(table, ids, axis=0, mode="clip").astype(self.dtype)
