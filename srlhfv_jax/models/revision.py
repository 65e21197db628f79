"""Internal Activation Revision (Li et al., AAAI 2025): a constant vector added to activations while an answer is written.

    layer    h_l <- h_l + strength v_l                                        the residual stream after a layer
    heads    x <- x + sum_j O_j (a_j + strength sigma_j v_j)                  inputs of the attention's output projection

O_j sigma_j v_j is the same for every token, so both are one vector for each layer, a leaf of the tree, and the place of the leaf says
where it is added: `text/layers/revision` [L, D], or `text/layers/self_attn/revision` [L, D], a bias behind the projection.

It acts from the last token of the prompt on, whose hidden state predicts the first token of the answer. What comes before is read by
the backbone alone: a revision is activated as an adapter is (models/lora.py), by `VLMConfig.activation`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from srlhfv_jax.models.layers import REVISION

SITES = ("heads", "layer")


def overlay(params: dict[str, Any], site: str, vector_LD: Float[Array, "L D"]) -> dict[str, Any]:
    """`params` with the vectors of all layers beside their kernels; no array of theirs is copied.

    Args:
        site: of SITES.
        vector_LD: float32, strength included; where all are 0 this is `params` itself, and the program that of no revision.
    """
    if not np.any(np.asarray(vector_LD)):
        return params
    layers, leaf = params["text"]["layers"], {REVISION: vector_LD}
    layers = layers | (leaf if site == "layer" else {"self_attn": layers["self_attn"] | leaf})
    return params | {"text": params["text"] | {"layers": layers}}


@jax.jit
def of_heads(kernel_LFD: Float[Array, "L F D"], shift_LHh: Float[Array, "L H h"]) -> Float[Array, "L D"]:
    """sum_j O_j s_j of each layer: what shifts of its heads' outputs add behind the output projection; float32.

    Args:
        kernel_LFD: kernels of the output projection, inputs first (F = H h).
    """
    shift_LF = shift_LHh.reshape(len(shift_LHh), -1)
    return jnp.einsum("lf,lfd->ld", shift_LF, kernel_LFD.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
