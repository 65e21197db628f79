"""A vision transformer over flattened patches, run up to the layer whose hidden states become image features.

One implementation of four towers. "clip" (Radford et al., arXiv 2103.00020): pictures are tiles of one size, each with a class token
and learned positions, and sees itself alone; LLaVA reads the layer before the last. "siglip" (Zhai et al., arXiv 2303.15343): the
same without a class token, read after its final norm. "qwen2" (Wang et al., arXiv 2409.12191): a
picture is as many patches as it has, positions are rotary in row and column. "qwen2_5" (Bai et al., arXiv 2502.13923): the same
with RMS norms, a gated MLP, and most layers seeing a window only. What lies behind the feature layer is kept in the
tree under "unused" so that an export is complete, and never run.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from srlhfv_jax.batches import Images
from srlhfv_jax.models import attention, kernels, stack
from srlhfv_jax.models.attention import Rotation
from srlhfv_jax.models.config import RopeConfig, VisionConfig, VLMConfig
from srlhfv_jax.models.layers import ACTIVATIONS, Dense, LayerNorm, RMSNorm

ROTARY = RopeConfig(theta=10000.0)
MOST_WINDOWS = 1 << 10  # along a side of a picture


class Embeddings(nn.Module):
    """Patches [B, N, C] in the tower's width; for "clip" behind a class token, with learned positions."""

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, patches_BNC):
        c = self.config
        # A convolution with stride = kernel is a matrix product on patches, flattened in the order of the stored kernel.
        x_BNE = Dense(c.width, "out", c.kind == "siglip", self.dtype, name="patch_embedding")(patches_BNC.astype(self.dtype))
        if not c.image_size:
            return x_BNE
        if c.kind == "siglip":
            return x_BNE + jnp.broadcast_to(self._positions(x_BNE), x_BNE.shape)
        first_E = self.param("class_embedding", nn.initializers.normal(0.02), (c.width,)).astype(self.dtype)
        x_BNE = jnp.concatenate([jnp.broadcast_to(first_E, (x_BNE.shape[0], 1, c.width)), x_BNE], axis=1)
        return LayerNorm(c.norm_eps, name="pre_layernorm")(x_BNE + jnp.broadcast_to(self._positions(x_BNE), x_BNE.shape))

    def _positions(self, x_BNE):
        return self.param("position_embedding", nn.initializers.normal(0.02), x_BNE.shape[1:]).astype(self.dtype)


class Layer(nn.Module):
    """A pre-norm encoder layer."""

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BNE, rotation: Rotation | None = None, sees=None):
        c = self.config
        B, N, E = x_BNE.shape
        gain = (2 * c.layers) ** -0.5
        norm = RMSNorm if c.kind == "qwen2_5" else LayerNorm

        def wide(name):
            return Dense(c.mlp, "out", True, self.dtype, name=name)

        def heads(x_BNE):
            return x_BNE.reshape(B, N, c.heads, E // c.heads)

        normed_BNE = norm(c.norm_eps, name="layer_norm1")(x_BNE)
        if not c.image_size:
            q, k, v = map(heads, jnp.split(Dense(3 * E, "out", True, self.dtype, name="qkv")(normed_BNE), 3, axis=-1))
            q, k = attention.rotate(q, rotation), attention.rotate(k, rotation)
        else:
            names = ("q_proj", "k_proj", "v_proj")
            q, k, v = (heads(Dense(E, "out", True, self.dtype, name=name)(normed_BNE)) for name in names)
        mixed_BNE = kernels.attend(*(x.swapaxes(1, 2) for x in (q, k, v)), sees).swapaxes(1, 2).reshape(B, N, E)
        x_BNE = x_BNE + Dense(E, "in", True, self.dtype, gain, name="out_proj")(mixed_BNE)
        normed_BNE = norm(c.norm_eps, name="layer_norm2")(x_BNE)
        middle_BNF = ACTIVATIONS[c.activation](wide("fc1")(normed_BNE))
        if c.kind == "qwen2_5":
            middle_BNF = middle_BNF * wide("up_proj")(normed_BNE)
        return x_BNE + Dense(E, "in", True, self.dtype, gain, name="fc2")(middle_BNF)


def encode(config: VLMConfig, params, images: Images) -> Float[Array, "B N E"]:
    """Hidden states of every patch at the feature layer, those of all tiles of a row one after the other."""
    c, dtype = config.vision, jnp.dtype(config.dtype)
    patches_BNC, rotation = images.patches_BNC, None
    B = patches_BNC.shape[0]
    if c.image_size:  # every tile is a row of its own
        patches_BNC = patches_BNC.reshape(-1, c.tile_patches, c.patch_values)
    else:
        rotation = _rotation_by_place(c, images.grid_BN2)
    x_BNE = Embeddings(c, dtype).apply({"params": params["embeddings"]}, patches_BNC)
    kernel = kernels.choose(config.attention, config.dtype, c.width // c.heads)
    whole, window = _sights(c, images, x_BNE.shape[:2], kernel)
    full_L = np.isin(np.arange(c.layers), c.full_layers)
    layer = Layer(c, dtype)

    def run(x_BNE, weights, index):
        sees = whole
        if window is not None:
            full = jnp.asarray(full_L)[index]
            sees = jax.tree.map(lambda far, near: jnp.where(full, far, near), whole, window)
        return layer.apply({"params": weights}, x_BNE, rotation, sees)

    x_BNE = stack.run(run, params["layers"], x_BNE, unroll=config.scan_unroll, remat=config.remat)
    if c.kind == "siglip":
        x_BNE = LayerNorm(c.norm_eps).apply({"params": params["post_layernorm"]}, x_BNE)
    if c.kind == "clip" and not c.keep_class_token:
        x_BNE = x_BNE[:, 1:]
    return x_BNE.reshape(B, -1, c.width)


def _sights(c: VisionConfig, images: Images, shape: tuple[int, int], kernel: str):
    """Whom a patch sees: its whole picture, and, where there are windows, the patches of its window. None: all."""
    if c.image_size:
        return None if kernel == "xla" else kernels.together(kernel, jnp.zeros(shape, jnp.int32)), None
    groups = [images.picture_BN]
    if c.window:
        row_BN, column_BN = jnp.moveaxis(images.grid_BN2 // c.window, 2, 0)
        groups.append((images.picture_BN * MOST_WINDOWS + row_BN) * MOST_WINDOWS + column_BN)
    if kernel == "xla":
        sights = [attention.bias(group_BN[:, :, None] == group_BN[:, None, :]) for group_BN in groups]
    else:
        sights = [kernels.together(kernel, group_BN) for group_BN in groups]
    return sights[0], sights[1] if c.window else None


def _rotation_by_place(c: VisionConfig, grid_BN2) -> Rotation:
    """The first half of the frequencies turns with the row, the second with the column."""
    row, column = (attention.rotation(ROTARY, c.width // c.heads // 2, grid_BN2[:, :, axis]) for axis in (0, 1))
    return Rotation(*(jnp.concatenate(pair, axis=-1) for pair in zip(row, column)))
