"""The vision-language model as pure functions of (config, params): init, encode_images, apply, measure, logits, and the cache.

`params` is a plain nested dict; layers are stacked on axis 0; `hf/names.py` lists every leaf beside its Hugging Face name:

    {"vision": {"embeddings", "layers", "unused"}, "projector": {"linear_1", "linear_2"},
     "text": {"embed", "layers", "norm", "head" (untied only)}}

Some projectors have a "norm", or a "newline". A text-only model has "text" alone. Everything above this
package calls only these functions; Flax Linen stays behind them.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from srlhfv_jax.batches import Features, Images
from srlhfv_jax.errors import UserError
from srlhfv_jax.losses import products
from srlhfv_jax.models import attention, kernels, language, lora, stack, vision
from srlhfv_jax.models.attention import KV
from srlhfv_jax.models.config import RopeConfig, TextConfig, VisionConfig, VLMConfig
from srlhfv_jax.models.layers import INPUT_FIRST, KERNEL_IN_OUT, Embedding, LayerNorm, RMSNorm
from srlhfv_jax.models.measure import Measure
from srlhfv_jax.models.projector import Projector, project
from srlhfv_jax.parallel import order


class Cache(NamedTuple):
    """Keys and values seen so far, as large as the most tokens it can hold."""

    kv: KV
    mask_BT: Bool[Array, "B T"]  # slots a later token may attend to
    index: Int[Array, ""] | Int[Array, "B"]  # the next free slot, the same for all rows or of each


class Prefix(NamedTuple):
    """Keys and values of tokens that come before others, rows first, so that it travels with a batch."""

    kv: KV  # [B, L, K, P, h] for a scanned stack
    mask_BP: Bool[Array, "B P"]


def init(config: VLMConfig, key: Array) -> dict:
    """Random float32 parameters: normal, 1/sqrt(fan-in), residual outputs smaller by sqrt(2 layers); embeddings 0.02."""
    text_key, vision_key, projector_key = jax.random.split(key, 3)
    params = {"text": _init_text(config.text, text_key)}
    if config.vision is not None:
        params["vision"] = _init_vision(config.vision, vision_key)
        square_1NE = jnp.zeros((1, max(config.vision.tile_patches, config.vision.merge**2), config.vision.width))
        params["projector"] = _init(Projector(config), projector_key, square_1NE)
    return params


def encode_images(config: VLMConfig, params, images: Images) -> Features:
    """Tower output of every patch, before the projector: computed once per prompt and reused wherever the towers are equal."""
    return Features(vision.encode(config, params["vision"], images), images.order_BM)


def apply(
    config: VLMConfig,
    params,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T *axes"],
    mask_BT: Bool[Array, "B T"],
    features: Features | None = None,
    cache: Cache | None = None,
    read: attention.Read | None = None,
    backwards: int = 0,
    before: Prefix | None = None,
    prompts: Cache | None = None,
) -> tuple[Float[Array, "B T D"], Cache | None]:
    """Hidden states after the final norm, and the cache with these tokens in it.

    Without a cache: causal attention over T, pads attended to by nobody. With one, T > 1 is a prefill of the empty cache and T
    = 1 a decode step at slot `cache.index`, which may be another one in each row, and attends to every valid slot.

    Args:
        positions_BT: rotary positions: 0 at a row's first real token; three of each with M-RoPE.
        mask_BT: true at real tokens.
        features: of `encode_images`, for the image placeholders of each row. None: no row has an image.
        read: return hidden states at this many last positions only, or at these of each row: what is not read need not be
            computed. None: at all T.
        backwards: so many positions at the start hold another continuation of what follows, its last token first, and as many at
            the end the first one: [answer backwards | prompt | answer]. Each sees the prompt and itself. What a position sees is
            then an interval still. Not with local layers.
        before: of `prefix`: what every position sees before it. Instead of a cache.
        prompts: what has been read of each prompt, for as many neighbours among the rows each: a decode step sees its row's prompt
            before what is in the cache. It is not copied, and stays as it is.
    """
    given = (tokens_BT, positions_BT, mask_BT, features, cache, read, backwards, before, prompts)
    return _apply(config, params, *given, measure=None)[:2]


def measure(
    config: VLMConfig,
    params,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T *axes"],
    mask_BT: Bool[Array, "B T"],
    features: Features | None,
    reduce: Measure,
    before: Prefix | None = None,
) -> tuple[Float[Array, "B T D"], Any]:
    """`apply` to whole sequences, and what `reduce` makes of the taps of each layer, stacked over layers on axis 0.

    Args:
        reduce: pure; its arrays are small, as sums over tokens or some positions of them are. Those of all layers lie in memory.
    """
    given = (tokens_BT, positions_BT, mask_BT, features, None, None, 0, before, None)
    hidden_BTD, _, found = _apply(config, params, *given, measure=reduce)
    return hidden_BTD, found


def _apply(
    config: VLMConfig,
    params,
    tokens_BT,
    positions_BT,
    mask_BT,
    features: Features | None,
    cache: Cache | None,
    read: attention.Read | None,
    backwards: int,
    before: Prefix | None,
    prompts: Cache | None,
    *,
    measure: Measure | None,
) -> tuple[Float[Array, "B T D"], Cache | None, Any]:
    text = config.text
    whole_BT = mask_BT if before is None else jnp.concatenate([before.mask_BP, mask_BT], axis=1)
    room = whole_BT.shape[1] - backwards if cache is None else cache.mask_BT.shape[1]
    P = 0 if prompts is None else prompts.mask_BT.shape[1]
    _check_length(text, room + P)
    embedding = Embedding(text.vocab, text.width, jnp.dtype(config.dtype))
    x_BTD = embedding.apply({"params": params["text"]["embed"]}, tokens_BT)
    if text.embed_scale != 1:
        x_BTD = x_BTD * jnp.asarray(text.embed_scale, x_BTD.dtype)
    is_image_BT = None if config.image_token is None else tokens_BT == config.image_token
    if features is not None:
        x_BTD = project(config, params["projector"], features, x_BTD, is_image_BT)
    T = tokens_BT.shape[1]
    read = T if read is None else read
    slot = None if cache is None else cache.index if T == 1 else 0
    seen_BT = mask_BT if cache is None else attention.put(cache.mask_BT, mask_BT, slot, axis=1)
    block_BT = attention.blocks(is_image_BT & mask_BT) if text.sees_whole_images and before is None else None
    kernel = "xla" if T == 1 else kernels.choose(config.attention, config.dtype, text.head_dim)

    def sight(rope: RopeConfig, window: int) -> language.Sight:
        angles = attention.rotation(rope, text.head_dim, positions_BT)
        if kernel != "xla":
            return language.Sight(angles, kernels.causal(kernel, whole_BT, window, block_BT, backwards))
        if cache is not None and T == 1:  # one token, which sees the whole cache, or the end of it
            kept_BT = seen_BT
            if prompts is not None:
                kept_BT = jnp.concatenate(
                    [jnp.repeat(prompts.mask_BT, len(seen_BT) // len(prompts.mask_BT), axis=0), seen_BT], axis=1
                )
            first = P + jnp.reshape(slot, (-1, 1)) - window
            visible_BTT = (kept_BT & (jnp.arange(P + room)[None] > first) if window else kept_BT)[:, None, :]
        else:
            visible_BTT = attention.causal(whole_BT, window, block_BT, backwards)
        return language.Sight(angles, attention.bias(visible_BTT))

    everywhere = sight(text.rope, 0)
    locally = sight(text.local_rope or text.rope, text.window) if text.local_layers else None
    kv = cache.kv if cache is not None else before and _rows_second(before.kv)
    before_cache = prompts and prompts.kv
    hidden_BTD, kv, found = language.decode(
        config, params["text"], x_BTD, everywhere, locally, kv, slot, read, before_cache, measure
    )
    return hidden_BTD, None if cache is None else Cache(kv, seen_BT, cache.index + T), found


def prefix(config: VLMConfig, params, tokens_BP, positions_BP, mask_BP, features: Features | None) -> Prefix:
    """Keys and values that tokens `before` others leave for them, as the backbone alone makes them, without an adapter."""
    cache = init_cache(config, *tokens_BP.shape, jnp.dtype(config.dtype))
    _, cache = apply(config, lora.bare(params), tokens_BP, positions_BP, mask_BP, features, cache, read=1)
    return Prefix(_rows_second(cache.kv), mask_BP)


def _rows_second(kv: KV) -> KV:
    """Rows and layers changed over, where one array holds all layers."""
    return kv if isinstance(kv.k, tuple) else KV(*(stored.swapaxes(0, 1) for stored in kv))


def init_cache(config: VLMConfig, batch: int, length: int, dtype) -> Cache:
    """An empty cache for `length` tokens a row."""
    text = config.text
    kept = text.kv_heads * attention.copies(text.heads, text.kv_heads)
    stored_LBKTh = jnp.zeros((text.layers, batch, kept, length, text.head_dim), dtype)
    stored = stack.split(stored_LBKTh, config.scan_unroll)
    return Cache(KV(stored, stored), jnp.zeros((batch, length), bool), jnp.int32(0))


def for_decoding(config: VLMConfig, params) -> dict:
    """`params` as a loop over tokens reads them fastest: one tree per decoder layer where the stack is unrolled, so that nothing is
    sliced for a token; on CPU, all of these kernels and the output matrix with their inputs first.

    A product of few rows with a matrix that lies the other way takes 1.5 times as long there: every time, it is put in order.
    """
    text = params["text"]
    layers = stack.split(text["layers"], config.scan_unroll)
    if not (isinstance(layers, tuple) and order.on_cpu()):
        return params | {"text": text | {"layers": layers}}
    text = text | {"layers": tuple(_turned(layer) for layer in layers), KERNEL_IN_OUT: unembedding(config, params).T}
    return params | {"text": text}


def _turned(tree: dict, name: str = "") -> dict:
    """Kernels (out, in) of a tree as (in, out), under another name. Those of eight bits stay."""
    if "kernel" in tree and "kernel_scale" not in tree and name not in INPUT_FIRST:
        return {part: leaf for part, leaf in tree.items() if part != "kernel"} | {KERNEL_IN_OUT: tree["kernel"].T}
    return {part: _turned(below, part) if isinstance(below, dict) else below for part, below in tree.items()}


def unembedding(config: VLMConfig, params) -> Float[Array, "V D"]:
    """The output matrix: the embedding itself where the head is tied."""
    text = params["text"]
    return text["embed"]["embedding"] if config.text.tied_head else text["head"]["kernel"]


def logits(config: VLMConfig, params, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Float32 logits; call it on the positions that need them."""
    turned = params["text"].get(KERNEL_IN_OUT)
    kernel, inputs = (unembedding(config, params), 1) if turned is None else (turned, 0)
    contract = (((hidden.ndim - 1,), (inputs,)), ((), ()))
    how = dict(precision=products.precision(hidden.dtype), preferred_element_type=jnp.float32)
    return jax.lax.dot_general(hidden, kernel.astype(hidden.dtype), contract, **how)


def _init_text(c: TextConfig, key) -> dict:
    embed_key, layers_key, head_key = jax.random.split(key, 3)
    ids_BT, x_BTD = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, c.width))
    sight = language.Sight(attention.rotation(dataclasses.replace(c.rope, sections=()), c.head_dim, ids_BT), None)
    params = {
        "embed": _init(Embedding(c.vocab, c.width, jnp.float32), embed_key, ids_BT),
        "layers": _init_stack(language.Layer(c, jnp.float32), c.layers, layers_key, x_BTD, sight, None, 0, 0, 1),
        "norm": _init(RMSNorm(c.norm_eps, c.norm_offset), key, x_BTD),
    }
    if not c.tied_head:
        params["head"] = {"kernel": nn.initializers.normal(0.02)(head_key, (c.vocab, c.width))}
    return params


def _init_vision(c: VisionConfig, key) -> dict:
    embeddings_key, used_key, unused_key = jax.random.split(key, 3)
    patches_BNC = jnp.zeros((1, max(c.tile_patches, 1), c.patch_values))
    x_BNE = jnp.zeros((1, 1, c.width))
    rotation = attention.rotation(vision.ROTARY, c.width // c.heads, jnp.zeros((1, 1), jnp.int32))
    layer = vision.Layer(c, jnp.float32)
    params = {
        "embeddings": _init(vision.Embeddings(c, jnp.float32), embeddings_key, patches_BNC),
        "layers": _init_stack(layer, c.used_layers, used_key, x_BNE, rotation),
    }
    if c.kind == "clip":
        params["unused"] = {"post_layernorm": _init(LayerNorm(c.norm_eps), key, x_BNE)}
    if c.kind == "siglip":
        params["post_layernorm"] = _init(LayerNorm(c.norm_eps), key, x_BNE)
    if c.layers > c.used_layers:
        params["unused"]["layers"] = _init_stack(layer, c.layers - c.used_layers, unused_key, x_BNE, rotation)
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
