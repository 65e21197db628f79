"""Gemma 3: a SigLIP tower on one square picture, pooled, and a decoder whose layers are local but for every sixth.

Names as LLaVA's: `language_model.model...` and `vision_tower.vision_model...` in what was published and in what we write.
"""

import dataclasses
from typing import Any

from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import fields, llava, text, towers
from srlhfv_jax.hf.leaves import Leaf, single
from srlhfv_jax.models.config import VLMConfig

TOWER_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": False,
}
DEFAULTS = {"image_token_index": 262144, "mm_tokens_per_image": 256, "tie_word_embeddings": True}


def read(data: dict[str, Any], origin: str) -> VLMConfig:
    """The model that a config.json with `model_type` gemma3 describes."""
    top, tower = DEFAULTS | data, TOWER_DEFAULTS | fields.part(data, "vision_config", origin)
    side, features = tower["image_size"] // tower["patch_size"], top["mm_tokens_per_image"]
    merge = max(round(side / features**0.5), 1)
    if (side // merge) ** 2 != features or side % merge:
        raise UserError(f"{origin}: mm_tokens_per_image {features} does not come from squares of {side} x {side} patches")
    language = text.read(fields.part(data, "text_config", origin), "gemma3_text", origin, top["tie_word_embeddings"])
    return VLMConfig(
        family="gemma3",
        text=dataclasses.replace(language, sees_whole_images=True),
        vision=towers.read(tower, "siglip", origin, feature_layer=-1, merge=merge),
        image_token=data.get("image_token_id", top["image_token_index"]),
        connector="pool",
        projector_bias=False,
    )


def table(config: VLMConfig) -> list[Leaf]:
    """Every leaf."""
    projector = "multi_modal_projector."
    return [
        *towers.table(config.vision, "vision_tower.vision_model."),
        single("projector/norm/scale", projector + "mm_soft_emb_norm.weight"),
        single("projector/linear_1/kernel", projector + "mm_input_projection_weight"),
        *text.table(config.text, "language_model.model.", "language_model.lm_head.weight"),
    ]


def published(name: str) -> str:
    """A tensor's name in the layout of `table`, whichever of the layouts it came in."""
    return llava.published(name)


def module(name: str) -> str:
    """Path of the decoder in a running model."""
    return llava.module(name)
