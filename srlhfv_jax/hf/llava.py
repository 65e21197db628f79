"""LLaVA-1.5 and LLaVA-NeXT: a CLIP tower, two dense layers, a Llama or Mistral decoder. Settings and tensors of both.

LLaVA-NeXT (Liu et al., 2024) looks at a picture as a whole and in tiles, and has one vector more, `image_newline`.

Three layouts of names exist on disk: `language_model.model.layers...` with `vision_tower.vision_model...` (what was published and
what we write), the names of the modules in memory, `model.language_model.layers...`, and a mixture that `transformers` 5 writes.
"""

import re
from typing import Any

from srlhfv_jax.config import choose
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.hf import fields, text, towers
from srlhfv_jax.hf.leaves import TRANSPOSED, Leaf, single
from srlhfv_jax.models.config import VisionConfig, VLMConfig
from srlhfv_jax.models.layers import ACTIVATIONS

DEFAULTS = {
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "multimodal_projector_bias": True,
    "tie_word_embeddings": False,
}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # of LLaVA-NeXT
CLIP_DEFAULTS = {  # those LlavaConfig gives its tower
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
DECODERS = ("llama", "mistral")


def read(data: dict[str, Any], origin: str) -> VLMConfig:
    """The model that a config.json with `model_type` llava or llava_next describes."""
    top, family = DEFAULTS | data, data["model_type"]
    decoder, tower = (fields.part(data, name, origin) for name in ("text_config", "vision_config"))
    kind = decoder.get("model_type", "llama")
    for part, value, allowed in (
        ("text_config", kind, DECODERS),
        ("vision_config", tower.get("model_type", "clip_vision_model"), ("clip_vision_model",)),
    ):
        if value not in allowed:
            raise UserError(f"{origin}: {part}.model_type must be {' or '.join(map(repr, allowed))}, got {shown(value)}")
    if family == "llava_next" and top["vision_feature_select_strategy"] != "default":
        raise UserError(f"{origin}: vision_feature_select_strategy must be 'default' for llava_next: tiles have no room for more")
    pinpoints = tuple(tuple(size) for size in data.get("image_grid_pinpoints") or PINPOINTS) if family == "llava_next" else ()
    if any(len(size) != 2 for size in pinpoints):
        raise UserError(
            f"{origin}: image_grid_pinpoints must be pairs (height, width), got {shown(data['image_grid_pinpoints'])}"
        )
    return VLMConfig(
        family=family,
        text=text.read(decoder, kind, origin, top["tie_word_embeddings"] or decoder.get("tie_word_embeddings", False)),
        vision=_tower(CLIP_DEFAULTS | tower, top, origin),
        image_token=data.get("image_token_index", data.get("image_token_id", DEFAULTS["image_token_index"])),
        projector_activation=choose(top["projector_hidden_act"], f"{origin}: projector_hidden_act", *ACTIVATIONS),
        projector_bias=top["multimodal_projector_bias"],
        pinpoints=pinpoints,
    )


def table(config: VLMConfig) -> list[Leaf]:
    """Every leaf."""
    return [
        *towers.table(config.vision, "vision_tower.vision_model."),
        *_projector(config.projector_bias, "multi_modal_projector."),
        *([single("projector/newline", "image_newline")] if config.pinpoints else []),
        *text.table(config.text, "language_model.model.", "language_model.lm_head.weight"),
    ]


def published(name: str) -> str:
    """A tensor's name in the layout of `table`, whichever of the layouts it came in."""
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^model\.(vision_tower|multi_modal_projector|image_newline)", r"\1", name)
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
    return re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)


def module(name: str) -> str:
    """Path of the decoder in a running model."""
    return re.sub(r"^language_model\.model\.", "model.language_model.", name)


def _tower(c: dict[str, Any], top: dict[str, Any], origin: str) -> VisionConfig:
    layer, depth = top["vision_feature_layer"], c["num_hidden_layers"]
    if type(layer) is not int or not (1 <= layer <= depth or -depth <= layer <= -1):
        raise UserError(f"{origin}: vision_feature_layer must be one layer of 1..{depth} or -{depth}..-1, got {shown(layer)}")
    strategy = top["vision_feature_select_strategy"]
    if strategy not in ("default", "full"):
        raise UserError(f"{origin}: vision_feature_select_strategy must be 'default' or 'full', got {shown(strategy)}")
    return towers.read(c, "clip", origin, feature_layer=layer, full=strategy == "full")


def _projector(bias: bool, prefix: str) -> list[Leaf]:
    kernels = [
        single("projector/linear_1/kernel", prefix + "linear_1.weight"),
        single("projector/linear_2/kernel", prefix + "linear_2.weight", TRANSPOSED),
    ]
    return kernels + [single(f"projector/{n}/bias", f"{prefix}{n}.bias") for n in ("linear_1", "linear_2") if bias]
