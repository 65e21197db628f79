"""A CLIP vision tower (Radford et al., arXiv 2103.00020), run up to the layer whose hidden states become image features.

LLaVA reads the layer before the last: what lies behind (the remaining layers and the final norm) is kept in the tree under
"unused" so that an export is complete, and never run.
"""

import einops
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from srlhfv_jax.models import attention, stack
from srlhfv_jax.models.config import VisionConfig, VLMConfig
from srlhfv_jax.models.layers import ACTIVATIONS, Dense, LayerNorm


class Embeddings(nn.Module):
    """Patches in reading order behind a class token, plus learned positions."""

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels_BCYX):
        c = self.config
        # A convolution with stride = kernel is a matrix product on patches, flattened (channel, y, x) as in the stored kernel.
        patches_BNC = einops.rearrange(pixels_BCYX.astype(self.dtype), "B C (Y y) (X x) -> B (Y X) (C y x)", y=c.patch, x=c.patch)
        x_BNE = Dense(c.width, "out", False, self.dtype, name="patch_embedding")(patches_BNC)
        first_E = self.param("class_embedding", nn.initializers.normal(0.02), (c.width,)).astype(self.dtype)
        x_BNE = jnp.concatenate([jnp.broadcast_to(first_E, (x_BNE.shape[0], 1, c.width)), x_BNE], axis=1)
        position_NE = self.param("position_embedding", nn.initializers.normal(0.02), x_BNE.shape[1:]).astype(self.dtype)
        return LayerNorm(c.norm_eps, name="pre_layernorm")(x_BNE + jnp.broadcast_to(position_NE, x_BNE.shape))


class Layer(nn.Module):
    """A pre-norm encoder layer with full attention."""

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BNE):
        c = self.config
        B, N, E = x_BNE.shape
        gain = (2 * c.layers) ** -0.5
        normed_BNE = LayerNorm(c.norm_eps, name="layer_norm1")(x_BNE)
        q, k, v = (
            Dense(E, "out", True, self.dtype, name=name)(normed_BNE).reshape(B, N, c.heads, E // c.heads).swapaxes(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed_BNE = attention.attend(q, k, v).swapaxes(1, 2).reshape(B, N, E)
        x_BNE = x_BNE + Dense(E, "in", True, self.dtype, gain, name="out_proj")(mixed_BNE)
        normed_BNE = LayerNorm(c.norm_eps, name="layer_norm2")(x_BNE)
        middle_BNF = ACTIVATIONS[c.activation](Dense(c.mlp, "out", True, self.dtype, name="fc1")(normed_BNE))
        return x_BNE + Dense(E, "in", True, self.dtype, gain, name="fc2")(middle_BNF)


def encode(config: VLMConfig, params, pixels_BCYX: Float[Array, "B C Y X"]) -> Float[Array, "B N E"]:
    """Hidden states of every patch at the feature layer."""
    c, dtype = config.vision, jnp.dtype(config.dtype)
    layer = Layer(c, dtype)
    x_BNE = Embeddings(c, dtype).apply({"params": params["embeddings"]}, pixels_BCYX)
    x_BNE = stack.run(
        lambda x, own, index: layer.apply({"params": own}, x),
        params["layers"],
        x_BNE,
        unroll=config.scan_unroll,
        remat=config.remat,
    )
    return x_BNE if c.keep_class_token else x_BNE[:, 1:]
