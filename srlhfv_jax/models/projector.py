"""Image features into the decoder's stream: two dense layers, and the place of each feature among the tokens."""

import jax.numpy as jnp
from flax import linen as nn

from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.layers import ACTIVATIONS, Dense


class Projector(nn.Module):
    """linear_2(act(linear_1 x)): the connector of LLaVA-1.5 (Liu et al., arXiv 2310.03744)."""

    config: VLMConfig

    @nn.compact
    def __call__(self, features_BNE):
        c = self.config
        width, dtype = c.text.width, jnp.dtype(c.dtype)
        x_BND = Dense(width, "out", c.projector_bias, dtype, name="linear_1")(features_BNE.astype(dtype))
        return Dense(width, "in", c.projector_bias, dtype, name="linear_2")(ACTIVATIONS[c.projector_activation](x_BND))


def place(x_BTD, projected_BND, is_image_BT):
    """Put the k-th feature of a row at the k-th placeholder of that row.

    tokens      1 7 <image> <image> 5     ->     e(1) e(7) f_0 f_1 e(5)
    """
    nth_BT = jnp.clip(jnp.cumsum(is_image_BT, axis=1, dtype=jnp.int32) - 1, 0, projected_BND.shape[1] - 1)
    placed_BTD = jnp.take_along_axis(projected_BND, nth_BT[:, :, None], axis=1)
    return jnp.where(is_image_BT[:, :, None], placed_BTD, x_BTD)
