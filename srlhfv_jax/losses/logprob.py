"""Log-probabilities of tokens: one definition for rollout, scoring and update, so that the first importance ratio is 1.

log pi(y) is the log-softmax of logits / temperature with the never-sampled ids (image placeholders, pads) at -inf, in float32,
without top-k or top-p. The sampler and the training graph both call this file; the model's output matrix comes in as an array.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from srlhfv_jax.losses import products


def log_softmax(
    logits: Float[Array, "... V"], *, temperature: float | Float[Array, "*#rows"], never_V: Bool[Array, "V"]
) -> Float[Array, "... V"]:
    """log pi(v) = z_v - log Σ_u exp z_u, z = logits / temperature, z_v = -inf where `never_V`; float32."""
    return jax.nn.log_softmax(_allowed(logits, temperature, never_V), axis=-1)


def chosen_logp(
    hidden_BRD: Float[Array, "B R D"],
    unembed_VD: Float[Array, "V D"],
    tokens_BR: Int[Array, "B R"],
    *,
    temperature: float | Float[Array, ""],
    never_V: Bool[Array, "V"],
    chunk: int = 0,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """log pi(y_t | y_<t) of the given tokens and the entropy H(pi(. | y_<t)) at each position, both float32.

    `hidden_BRD[:, t]` is the final hidden state from which token t is predicted. Logits are one matrix product in the dtype of
    `hidden_BRD`, accumulated in float32.

    Args:
        chunk: 0: one product, fastest, holds [B, R, V] numbers. Above: that many response positions at a time, recomputed
            in the backward pass, so that neither direction ever holds more than [B, chunk, V].
    """
    chex.assert_rank([hidden_BRD, unembed_VD, tokens_BR, never_V], [3, 2, 2, 1])
    chex.assert_equal_shape_prefix([hidden_BRD, tokens_BR], 2)
    chex.assert_axis_dimension(unembed_VD, 1, hidden_BRD.shape[2])
    chex.assert_axis_dimension(never_V, 0, unembed_VD.shape[0])
    chex.assert_type([hidden_BRD, unembed_VD, tokens_BR, never_V], [float, float, int, bool])

    def choose(hidden_BRD: Float[Array, "B R D"], tokens_BR: Int[Array, "B R"]) -> tuple[Array, Array]:
        # One row per position: a weight gradient that contracts two axes, B and R, takes a slow path of XLA's on CPU.
        # The cast is inside, so that the gradient of float32 weights is added over chunks in float32.
        rows = hidden_BRD.reshape(-1, hidden_BRD.shape[-1])
        unembed_cast_VD = unembed_VD.astype(rows.dtype)
        how = dict(precision=products.precision(rows.dtype), preferred_element_type=jnp.float32)
        logits = jnp.einsum("nD,VD->nV", rows, unembed_cast_VD, **how)
        logp, entropy = _chosen(_allowed(logits, temperature, never_V), tokens_BR.reshape(-1))
        return logp.reshape(tokens_BR.shape), entropy.reshape(tokens_BR.shape)

    if chunk == 0:
        return choose(hidden_BRD, tokens_BR)
    length = tokens_BR.shape[1]
    one_chunk = jax.checkpoint(lambda x: choose(*x))  # nothing of [B, chunk, V] is kept for the backward pass
    results = jax.lax.map(one_chunk, (_split(hidden_BRD, chunk), _split(tokens_BR, chunk)))
    logp_BR, entropy_BR = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :length] for x in results)
    return logp_BR, entropy_BR


def _split(x: Shaped[Array, "B R ..."], chunk: int) -> Shaped[Array, "chunks B chunk ..."]:
    """Cut axis 1 into chunks, zero-padded to whole ones, and put the chunks first. B stays whole: it may be sharded."""
    pad = -x.shape[1] % chunk
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)


def _allowed(
    logits: Float[Array, "... V"], temperature: float | Float[Array, "*#rows"], never_V: Bool[Array, "V"]
) -> Float[Array, "... V"]:
    never = jnp.broadcast_to(never_V, logits.shape)
    return jnp.where(never, -jnp.inf, logits.astype(jnp.float32) / temperature)


def _chosen(z: Float[Array, "n V"], tokens: Int[Array, "n"]) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """log pi(y) = z_y - lse(z) and H = -Σ_v pi_v log pi_v. A forbidden token gets -inf, with a finite gradient."""
    lse = jax.nn.logsumexp(z, axis=-1, keepdims=True)
    logp = jnp.take_along_axis(z, tokens[:, None], axis=-1) - lse
    # At forbidden ids pi log pi is 0 * -inf: put 0 there before the product, so that the gradient is clean as well.
    allowed = z > -jnp.inf
    every_logp = jnp.where(allowed, z, 0.0) - lse
    entropy = -jnp.sum(jnp.where(allowed, jnp.exp(every_logp) * every_logp, 0.0), axis=-1)
    return logp[:, 0], entropy
