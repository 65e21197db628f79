"""The vision-language model as pure functions of (config, params): init, encode_images, apply, logits, and the cache.

`params` is a plain nested dict; layers are stacked on axis 0; `hf/names.py` lists every leaf beside its Hugging Face name:

    {"vision": {"embeddings", "layers", "unused"}, "projector": {"linear_1", "linear_2"},
     "text": {"embed", "layers", "norm", "head" (untied only)}}

A text-only model has "text" alone. Everything above this package calls only these functions; Flax Linen stays behind them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from srlhfv_jax.errors import UserError
from srlhfv_jax.models import attention, language, stack, vision
from srlhfv_jax.models.attention import KV
from srlhfv_jax.models.config import TextConfig, VisionConfig, VLMConfig
from srlhfv_jax.models.layers import Embedding, LayerNorm, RMSNorm
from srlhfv_jax.models.projector import Projector, place


class Cache(NamedTuple):
    """Keys and values seen so far, as large as the most tokens it can hold."""

    kv: KV
    mask_BT: Bool[Array, "B T"]  # slots a later token may attend to
    index: Int[Array, ""]  # the next free slot, the same for all rows


def init(config: VLMConfig, key: Array) -> dict:
    """Random float32 parameters: normal, 1/sqrt(fan-in), residual outputs smaller by sqrt(2 layers); embeddings 0.02."""
    text_key, vision_key, projector_key = jax.random.split(key, 3)
    params = {"text": _init_text(config.text, text_key)}
    if config.vision is not None:
        params["vision"] = _init_vision(config.vision, vision_key)
        params["projector"] = _init(Projector(config), projector_key, jnp.zeros((1, 1, config.vision.width)))
    return params


def encode_images(config: VLMConfig, params, pixels_BCYX: Float[Array, "B C Y X"]) -> Float[Array, "B N E"]:
    """Tower output of every patch, before the projector: computed once per prompt and reused wherever the towers are equal."""
    return vision.encode(config, params["vision"], pixels_BCYX)


def apply(
    config: VLMConfig,
    params,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    mask_BT: Bool[Array, "B T"],
    features: Float[Array, "B N E"] | None = None,
    cache: Cache | None = None,
    last: int | None = None,
) -> tuple[Float[Array, "B T D"], Cache | None]:
    """Hidden states after the final norm, and the cache with these tokens in it.

    Without a cache: causal attention over T, pads attended to by nobody. With one, T > 1 is a prefill of the empty cache and T
    = 1 a decode step at slot `cache.index` which attends to every valid slot.

    Args:
        positions_BT: rotary positions: 0 at a row's first real token.
        mask_BT: true at real tokens.
        features: of `encode_images`; the k-th goes to the k-th image placeholder of its row. None: no row has an image.
        last: return hidden states at this many last positions only: what is not read need not be computed. None: at all T.
    """
    text = config.text
    _check_length(text, tokens_BT.shape[1] if cache is None else cache.mask_BT.shape[1])
    embedding = Embedding(text.vocab, text.width, jnp.dtype(config.dtype))
    x_BTD = embedding.apply({"params": params["text"]["embed"]}, tokens_BT)
    if features is not None:
        projected_BND = Projector(config).apply({"params": params["projector"]}, features)
        x_BTD = place(x_BTD, projected_BND, tokens_BT == config.image_token)
    rotation = attention.rotation(text.rope, text.head_dim, positions_BT)
    last = last or tokens_BT.shape[1]
    if cache is None:
        bias = attention.bias(attention.causal(mask_BT))
        hidden_BTD, _ = language.decode(config, params["text"], x_BTD, rotation, bias, None, None, last)
        return hidden_BTD, None

    T = tokens_BT.shape[1]
    slot = cache.index if T == 1 else 0
    seen_BT = jax.lax.dynamic_update_slice(cache.mask_BT, mask_BT, (0, slot))
    bias = attention.bias(seen_BT[:, None, :] if T == 1 else attention.causal(mask_BT))
    hidden_BTD, kv = language.decode(config, params["text"], x_BTD, rotation, bias, cache.kv, slot, last)
    return hidden_BTD, Cache(kv, seen_BT, cache.index + T)


def init_cache(config: VLMConfig, batch: int, length: int, dtype) -> Cache:
    """An empty cache for `length` tokens a row."""
    text = config.text
    stored_LBKTh = jnp.zeros((text.layers, batch, text.kv_heads, length, text.head_dim), dtype)
    stored = stack.split(stored_LBKTh, config.scan_unroll)
    return Cache(KV(stored, stored), jnp.zeros((batch, length), bool), jnp.int32(0))


def by_layer(config: VLMConfig, params) -> dict:
    """`params` with one tree per decoder layer where the stack is unrolled: a loop over tokens then slices nothing."""
    text = params["text"]
    return params | {"text": text | {"layers": stack.split(text["layers"], config.scan_unroll)}}


def unembedding(config: VLMConfig, params) -> Float[Array, "V D"]:
    """The output matrix: the embedding itself where the head is tied."""
    text = params["text"]
    return text["embed"]["embedding"] if config.text.tied_head else text["head"]["kernel"]


def logits(config: VLMConfig, params, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Float32 logits; call it on the positions that need them."""
    kernel_VD = unembedding(config, params).astype(hidden.dtype)
    contract = (((hidden.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(hidden, kernel_VD, contract, preferred_element_type=jnp.float32)


def _init_text(c: TextConfig, key) -> dict:
    embed_key, layers_key, head_key = jax.random.split(key, 3)
    ids_BT, x_BTD = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, c.width))
    rotation = attention.rotation(c.rope, c.head_dim, ids_BT)
    params = {
        "embed": _init(Embedding(c.vocab, c.width, jnp.float32), embed_key, ids_BT),
        "layers": _init_stack(language.Layer(c, jnp.float32), c.layers, layers_key, x_BTD, rotation, None, None, 0, 0, 1),
        "norm": _init(RMSNorm(c.norm_eps), key, x_BTD),
    }
    if not c.tied_head:
        params["head"] = {"kernel": nn.initializers.normal(0.02)(head_key, (c.vocab, c.width))}
    return params


def _init_vision(c: VisionConfig, key) -> dict:
    embeddings_key, used_key, unused_key = jax.random.split(key, 3)
    pixels_BCYX = jnp.zeros((1, c.channels, c.image_size, c.image_size))
    x_BNE = jnp.zeros((1, 1, c.width))
    layer = vision.Layer(c, jnp.float32)
    params = {
        "embeddings": _init(vision.Embeddings(c, jnp.float32), embeddings_key, pixels_BCYX),
        "layers": _init_stack(layer, c.used_layers, used_key, x_BNE),
        "unused": {"post_layernorm": _init(LayerNorm(c.norm_eps), key, x_BNE)},
    }
    if c.layers > c.used_layers:
        params["unused"]["layers"] = _init_stack(layer, c.layers - c.used_layers, unused_key, x_BNE)
    return params


def _check_length(text: TextConfig, length: int) -> None:
    if text.rope.kind == "dynamic" and length > text.max_positions:
        raise UserError(
            f"sequences of {length} tokens exceed the {text.max_positions} positions of this checkpoint, and a dynamic rope that "
            "changes with the length beyond them is not supported: shorten prompt_length + response_length"
        )


def _init(module: nn.Module, key, *inputs) -> dict:
    return module.init(key, *inputs)["params"]


def _init_stack(module: nn.Module, depth: int, key, *inputs) -> dict:
    return jax.vmap(lambda own: module.init(own, *inputs)["params"])(jax.random.split(key, depth))
