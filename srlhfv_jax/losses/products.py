"""Precision of matrix products, in the losses and in models/."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """For `precision` of a product of this dtype: float32 operands are multiplied as such.

    By default TPUs round them to bfloat16 and GPUs to TensorFloat32. Others are multiplied as they are.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def float32(x: Float[Array, "... n"], y: Float[Array, "n ..."]) -> Float[Array, "..."]:
    """x y of float32 numbers, whatever x and y were."""
    return jnp.matmul(x.astype(jnp.float32), y.astype(jnp.float32), precision=precision(jnp.float32))
