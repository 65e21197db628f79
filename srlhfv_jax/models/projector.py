"""Image features into the decoder's stream: the connector, and the place of each feature among the tokens."""

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from srlhfv_jax.batches import Features
from srlhfv_jax.models.config import VisionConfig, VLMConfig
from srlhfv_jax.models.layers import ACTIVATIONS, Dense, LayerNorm, RMSNorm


class Projector(nn.Module):
    """From the tower's width to the decoder's, a square of neighbouring patches to one feature where the tower's `merge` says so.

    mlp       linear_2(act(linear_1 x)): LLaVA (Liu et al., arXiv 2310.03744), and, of a square whose patches are normalised
              first, Qwen2-VL (Wang et al., arXiv 2409.12191). LLaVA-NeXT has a learned vector besides, which ends a line
    linear    linear_1 of a square: SmolVLM and Idefics3 (Laurencon et al., arXiv 2408.12637)
    pool      linear_1 of the normalised mean of a square: Gemma 3 (arXiv 2503.19786)
    """

    config: VLMConfig

    @nn.compact
    def __call__(self, tower_BNE):
        c, vision = self.config, self.config.vision
        width, bias, dtype = c.text.width, c.projector_bias, jnp.dtype(c.dtype)
        x_BNE = tower_BNE.astype(dtype)
        if c.connector == "pool":
            mean_BME = jnp.mean(_squares(vision, x_BNE), axis=2)
            normed_BME = RMSNorm(vision.norm_eps, c.text.norm_offset, name="norm")(mean_BME)
            return Dense(width, "in", bias, dtype, name="linear_1")(normed_BME)
        if c.connector == "linear":
            return Dense(width, "out", bias, dtype, name="linear_1")(_joined(vision, x_BNE))
        if vision.merge > 1:
            norm = RMSNorm if vision.kind == "qwen2_5" else LayerNorm
            x_BNE = _joined(vision, norm(vision.norm_eps, name="norm")(x_BNE))
        middle = x_BNE.shape[-1] if vision.merge > 1 else width
        x_BNE = ACTIVATIONS[c.projector_activation](Dense(middle, "out", bias, dtype, name="linear_1")(x_BNE))
        projected_BND = Dense(width, "in", bias, dtype, name="linear_2")(x_BNE)
        if not c.pinpoints:
            return projected_BND
        newline_D = self.param("newline", nn.initializers.normal(width**-0.5), (width,)).astype(dtype)
        newline_B1D = jnp.broadcast_to(newline_D, (x_BNE.shape[0], 1, width))
        return jnp.concatenate([projected_BND, newline_B1D], axis=1)


def _squares(vision: VisionConfig, x_BNE):
    """[B, N, E] -> [B, M, merge^2, E]: each feature's patches, in reading order."""
    m = vision.merge
    if not vision.image_size:  # they lie together already
        return einops.rearrange(x_BNE, "B (M yx) E -> B M yx E", yx=m * m)
    side = vision.image_size // vision.patch // m
    return einops.rearrange(x_BNE, "B (I Y y X x) E -> B (I Y X) (y x) E", Y=side, X=side, y=m, x=m)


def _joined(vision: VisionConfig, x_BNE):
    return einops.rearrange(_squares(vision, x_BNE), "B M yx E -> B M (yx E)")


def project(config: VLMConfig, params, features: Features, x_BTD, is_image_BT):
    """The stream with every placeholder's embedding replaced by its feature."""
    projected_BND = Projector(config).apply({"params": params}, features.tower_BNE)
    return place(x_BTD, projected_BND, is_image_BT, features.order_BM)


def place(x_BTD, projected_BND, is_image_BT, order_BM=None):
    """Put a row's features at its placeholders: the k-th at the k-th, or, with an order, feature order[k]; -1 is the last feature.

    tokens      1 7 <image> <image> 5     ->     e(1) e(7) f_0 f_1 e(5)
    """
    places = projected_BND.shape[1] if order_BM is None else order_BM.shape[1]
    nth_BT = jnp.clip(jnp.cumsum(is_image_BT, axis=1, dtype=jnp.int32) - 1, 0, places - 1)
    if order_BM is not None:
        nth_BT = jnp.take_along_axis(order_BM, nth_BT, axis=1) % projected_BND.shape[1]
    return jnp.where(is_image_BT[:, :, None], _pick(projected_BND, nth_BT), x_BTD)


@jax.custom_vjp
def _pick(rows_BND, nth_BT):
    """rows_BND[b, nth_BT[b, t]].

    The derivative is written out as a product with 0 and 1: a sum into picked rows, as automatic differentiation has it, is a loop
    over the rows on a CPU, and slow on a TPU as well.
    """
    return jnp.take_along_axis(rows_BND, nth_BT[:, :, None], axis=1)


def _pick_forward(rows_BND, nth_BT):
    return _pick(rows_BND, nth_BT), (nth_BT, jnp.arange(rows_BND.shape[1]))


def _pick_backward(saved, d_BTD):
    nth_BT, rows_N = saved
    picked_BTN = (nth_BT[:, :, None] == rows_N[None, None]).astype(d_BTD.dtype)
    return jnp.einsum("BTN,BTD->BND", picked_BTN, d_BTD, precision=jax.lax.Precision.HIGHEST), None


_pick.defvjp(_pick_forward, _pick_backward)
