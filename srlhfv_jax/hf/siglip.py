"""The SigLIP tower that SmolVLM, Idefics3 and Gemma 3 share: its settings and tensors."""

from typing import Any

from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import text
from srlhfv_jax.hf.leaves import FLATTENED, Leaf, norm, of_layers, single
from srlhfv_jax.hf.llava import ROWS_OF_CLIP_LAYER
from srlhfv_jax.models.config import VisionConfig


def read(c: dict[str, Any], merge: int, origin: str) -> VisionConfig:
    """The tower of a vision_config whose silent keys were filled in; `merge` patches a side become one feature."""
    for name in ("image_size", "patch_size"):
        if not isinstance(c[name], int):
            raise UserError(f"{origin}: vision_config.{name} must be one number (a square), got {c[name]!r}")
    if c.get("vision_use_head"):
        raise UserError(f"{origin}: vision_config.vision_use_head is not supported: image features are those of the patches")
    return VisionConfig(
        image_size=c["image_size"],
        patch=c["patch_size"],
        width=c["hidden_size"],
        mlp=c["intermediate_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        norm_eps=c["layer_norm_eps"],
        activation=text.activation(c["hidden_act"], "vision_config.hidden_act", origin),
        channels=c["num_channels"],
        kind="siglip",
        feature_layer=-1,
        merge=merge,
    )


def table(c: VisionConfig, prefix: str) -> list[Leaf]:
    """Every leaf of the tower whose tensors begin with `prefix`."""
    return [
        single("vision/embeddings/patch_embedding/kernel", prefix + "embeddings.patch_embedding.weight", FLATTENED),
        single("vision/embeddings/patch_embedding/bias", prefix + "embeddings.patch_embedding.bias"),
        single("vision/embeddings/position_embedding", prefix + "embeddings.position_embedding.weight"),
        *of_layers(("vision", "layers"), prefix + "encoder.layers.{}.", range(c.layers), ROWS_OF_CLIP_LAYER),
        *norm("vision/post_layernorm", prefix + "post_layernorm"),
    ]
