"""Qwen2-VL and Qwen2.5-VL: a tower for pictures of any size, a merger of 2 x 2 patches, a Qwen2 decoder with M-RoPE.

Settings and tensors of both. The tower of 2.5 has RMS norms, a gated MLP, and windows in most layers.

Older configs carry the decoder's settings at the top. Tensors are named `visual...` and `model...` in what was published and in
what we write; `transformers` 5 calls them `model.visual...` and `model.language_model...` in memory.
"""

import dataclasses
import re
from typing import Any

from srlhfv_jax.config import choose
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.hf import fields, text, towers
from srlhfv_jax.hf.leaves import FLATTENED, SAME, TRANSPOSED, Leaf, of_layers, rows_of_norms, single
from srlhfv_jax.models.config import VisionConfig, VLMConfig
from srlhfv_jax.models.layers import ACTIVATIONS

IMAGE_TOKEN = 151655
TOWER_DEFAULTS = {
    "depth": 32,
    "embed_dim": 1280,
    "num_heads": 16,
    "mlp_ratio": 4,
    "in_channels": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "hidden_act": "quick_gelu",
}
NORM_EPS = 1e-6  # written into the model, not into its config
ROPE_THETA = 10000.0  # of the towers

TOWER_2_5_DEFAULTS = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": (7, 15, 23, 31),
    "hidden_act": "silu",
}

ATTENTION_ROWS = (
    ("qkv/kernel", "attn.qkv.weight", SAME),
    ("qkv/bias", "attn.qkv.bias", SAME),
    ("out_proj/kernel", "attn.proj.weight", TRANSPOSED),
    ("out_proj/bias", "attn.proj.bias", SAME),
)
MLP_ROWS = (
    *rows_of_norms(("layer_norm1", "norm1"), ("layer_norm2", "norm2")),
    ("fc1/kernel", "mlp.fc1.weight", SAME),
    ("fc1/bias", "mlp.fc1.bias", SAME),
    ("fc2/kernel", "mlp.fc2.weight", TRANSPOSED),
    ("fc2/bias", "mlp.fc2.bias", SAME),
)
GATED_MLP_ROWS = (
    ("layer_norm1/scale", "norm1.weight", SAME),
    ("layer_norm2/scale", "norm2.weight", SAME),
    ("fc1/kernel", "mlp.gate_proj.weight", SAME),
    ("fc1/bias", "mlp.gate_proj.bias", SAME),
    ("up_proj/kernel", "mlp.up_proj.weight", SAME),
    ("up_proj/bias", "mlp.up_proj.bias", SAME),
    ("fc2/kernel", "mlp.down_proj.weight", TRANSPOSED),
    ("fc2/bias", "mlp.down_proj.bias", SAME),
)


def read(data: dict[str, Any], origin: str) -> VLMConfig:
    """The model that a config.json with `model_type` qwen2_vl or qwen2_5_vl describes."""
    decoder = data if data.get("text_config") is None else fields.part(data, "text_config", origin)
    tied = data.get("tie_word_embeddings", False) or decoder.get("tie_word_embeddings", False)
    language = text.read(decoder, "qwen2_vl_text", origin, tied)
    if sum(language.rope.sections) != language.head_dim // 2:
        raise UserError(
            f"{origin}: mrope_section must add up to {language.head_dim // 2}, half of a head, got {list(language.rope.sections)}"
        )
    return VLMConfig(
        family=data["model_type"],
        text=language,
        vision=_tower(fields.part(data, "vision_config", origin), data["model_type"] == "qwen2_5_vl", origin),
        image_token=data.get("image_token_id", IMAGE_TOKEN),
    )


def table(config: VLMConfig) -> list[Leaf]:
    """Every leaf."""
    merger, gated = "visual.merger.", config.vision.kind == "qwen2_5"
    rows = ATTENTION_ROWS + (GATED_MLP_ROWS if gated else MLP_ROWS)
    return [
        single("vision/embeddings/patch_embedding/kernel", "visual.patch_embed.proj.weight", FLATTENED),
        *of_layers(("vision", "layers"), "visual.blocks.{}.", range(config.vision.layers), rows),
        single("projector/norm/scale", merger + "ln_q.weight"),
        *([] if gated else [single("projector/norm/bias", merger + "ln_q.bias")]),
        single("projector/linear_1/kernel", merger + "mlp.0.weight"),
        single("projector/linear_1/bias", merger + "mlp.0.bias"),
        single("projector/linear_2/kernel", merger + "mlp.2.weight", TRANSPOSED),
        single("projector/linear_2/bias", merger + "mlp.2.bias"),
        *text.table(config.text, "model.", "lm_head.weight"),
    ]


def published(name: str) -> str:
    """A tensor's name in the layout of `table`, whichever of the layouts it came in."""
    return re.sub(r"^model\.language_model\.", "model.", re.sub(r"^model\.visual\.", "visual.", name))


def module(name: str) -> str:
    """Path of the decoder in a running model."""
    return re.sub(r"^model\.", "model.language_model.", name)


def _tower(data: dict[str, Any], gated: bool, origin: str) -> VisionConfig:
    c = (TOWER_2_5_DEFAULTS if gated else TOWER_DEFAULTS) | data
    width = c["hidden_size"] if gated else c["embed_dim"]  # Qwen2-VL's hidden_size is the decoder's
    rope = fields.part(data, "rope_parameters", origin)
    if rope.get("rope_theta", ROPE_THETA) != ROPE_THETA or rope.get("rope_type", "axial") not in ("axial", "default"):
        raise UserError(
            f"{origin}: vision_config.rope_parameters {shown(rope)} is not supported: rope_theta must be {ROPE_THETA:g}"
        )
    tower = VisionConfig(
        image_size=0,
        patch=c["patch_size"],
        width=width,
        mlp=c["intermediate_size"] if gated else int(width * c["mlp_ratio"]),
        layers=c["depth"],
        heads=c["num_heads"],
        norm_eps=NORM_EPS,
        activation=choose(c["hidden_act"], f"{origin}: vision_config.hidden_act", *ACTIVATIONS),
        channels=c.get("in_chans", c["in_channels"]),
        frames=c["temporal_patch_size"],
        kind="qwen2_5" if gated else "qwen2",
        feature_layer=-1,
        merge=c["spatial_merge_size"],
    )
    towers.sound(tower, origin)
    if tower.width // tower.heads % 4:
        raise UserError(f"{origin}: a head of the vision tower must be a multiple of 4 wide, got {tower.width // tower.heads}")
    if not gated:
        return tower
    window = c["window_size"] // tower.patch // tower.merge * tower.merge  # of whole features
    if not window:
        raise UserError(f"{origin}: vision_config.window_size {c['window_size']} is less than {tower.patch * tower.merge} pixels")
    return dataclasses.replace(tower, window=window, full_layers=tuple(c["fullatt_block_indexes"]))
