"""SmolVLM and Idefics3: a SigLIP tower over tiles, one matrix for a square of patches, a Llama decoder. Settings and tensors."""

from typing import Any

from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.hf import fields, text, towers
from srlhfv_jax.hf.leaves import Leaf, single
from srlhfv_jax.models.config import VLMConfig

TOWER_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
DEFAULTS = {"image_token_id": 128257, "tie_word_embeddings": False, "scale_factor": 2}


def read(data: dict[str, Any], origin: str) -> VLMConfig:
    """The model that a config.json with `model_type` smolvlm or idefics3 describes."""
    top, decoder = DEFAULTS | data, fields.part(data, "text_config", origin)
    kind = decoder.get("model_type", "llama")
    if kind not in ("llama", "mistral"):
        raise UserError(f"{origin}: text_config.model_type must be 'llama' or 'mistral', got {shown(kind)}")
    if not decoder:
        decoder = {"rms_norm_eps": 1e-5}  # only where there is no text_config at all
    return VLMConfig(
        family=data["model_type"],
        text=text.read(decoder, kind, origin, top["tie_word_embeddings"]),
        vision=towers.read(
            TOWER_DEFAULTS | fields.part(data, "vision_config", origin),
            "siglip",
            origin,
            feature_layer=-1,
            merge=top["scale_factor"],
        ),
        image_token=top["image_token_id"],
        connector="linear",
        projector_bias=False,
    )


def table(config: VLMConfig) -> list[Leaf]:
    """Every leaf."""
    return [
        *towers.table(config.vision, "model.vision_model."),
        single("projector/linear_1/kernel", "model.connector.modality_projection.proj.weight"),
        *text.table(config.text, "model.text_model.", "lm_head.weight"),
    ]


def published(name: str) -> str:
    """These families have one layout of names."""
    return name


def module(name: str) -> str:
    """Path of the decoder in a running model."""
    return name
