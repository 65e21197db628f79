"""config.json of a Hugging Face checkpoint -> VLMConfig, and back. Reads the JSON itself: no model classes, no torch.

Keys that a checkpoint leaves out have the defaults of the `transformers` classes, repeated here (a test compares them). A
setting we do not implement is an error that names it, never ignored.
"""

import json
from pathlib import Path
from typing import Any

from srlhfv_jax.config import choose
from srlhfv_jax.errors import UserError
from srlhfv_jax.models.config import RopeConfig, TextConfig, VisionConfig, VLMConfig
from srlhfv_jax.models.layers import ACTIVATIONS

LLAVA_DEFAULTS = {
    "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "multimodal_projector_bias": True,
    "tie_word_embeddings": False,
}
LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
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
IMAGE_TOKEN_DEFAULT = 32000
ROPE_THETA_DEFAULT = 10000.0
ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")


def read_config(folder: str | Path, *, dtype: str = "float32", remat: str = "none", scan_unroll: int = 1) -> VLMConfig:
    """The model shape written in `folder`/config.json.

    Raises:
        UserError: no config.json, not JSON, an architecture or a setting that is not supported.
    """
    choose(dtype, "dtype", "float32", "bfloat16")
    choose(remat, "remat", "none", "dots", "layer")
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"expected a Hugging Face model folder with a config.json, {folder} has none")
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    return from_json(data, str(path), dtype=dtype, remat=remat, scan_unroll=scan_unroll)


def from_json(data: dict[str, Any], origin: str, *, dtype: str, remat: str, scan_unroll: int) -> VLMConfig:
    """The same from the parsed dictionary; `origin` names it in errors."""
    family = data.get("model_type")
    run = dict(dtype=dtype, remat=remat, scan_unroll=scan_unroll)
    if family == "llama":
        tied = data.get("tie_word_embeddings", LLAMA_DEFAULTS["tie_word_embeddings"])
        return VLMConfig(family="llama", text=_text(data, origin, tied), vision=None, image_token=None, **run)
    if family != "llava":
        raise UserError(f"{origin}: model_type must be 'llava' or 'llama', got {family!r}; this architecture is not supported")
    top = LLAVA_DEFAULTS | data
    text, tower = data.get("text_config") or {}, data.get("vision_config") or {}
    for part, kind, expected in (("text_config", text, "llama"), ("vision_config", tower, "clip_vision_model")):
        if kind.get("model_type", expected) != expected:
            raise UserError(f"{origin}: {part}.model_type must be {expected!r}, got {kind['model_type']!r}")
    tied = top["tie_word_embeddings"] or text.get("tie_word_embeddings", False)
    return VLMConfig(
        family="llava",
        text=_text(text, origin, tied),
        vision=_vision(tower, top, origin),
        image_token=data.get("image_token_index", data.get("image_token_id", IMAGE_TOKEN_DEFAULT)),
        projector_activation=_activation(top["projector_hidden_act"], "projector_hidden_act", origin),
        projector_bias=top["multimodal_projector_bias"],
        **run,
    )


def to_json(config: VLMConfig) -> dict[str, Any]:
    """A config.json that `transformers` reads as this model. Other token ids are the tokenizer's business."""
    text, rope = config.text, config.text.rope
    parameters = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.kind != "default":
        parameters["factor"] = rope.factor
    if rope.kind in ("llama3", "yarn"):
        parameters["original_max_position_embeddings"] = rope.original_max_positions
    if rope.kind == "llama3":
        parameters |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind == "yarn":
        parameters |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if rope.attention_factor is not None:
            parameters["attention_factor"] = rope.attention_factor
    llama = {
        "model_type": "llama",
        "vocab_size": text.vocab,
        "hidden_size": text.width,
        "intermediate_size": text.mlp,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "head_dim": text.head_dim,
        "hidden_act": text.activation,
        "max_position_embeddings": text.max_positions,
        "rms_norm_eps": text.norm_eps,
        "tie_word_embeddings": text.tied_head,
        "attention_bias": text.attention_bias,
        "mlp_bias": text.mlp_bias,
        "rope_parameters": parameters,
    }
    if config.vision is None:
        return {"architectures": ["LlamaForCausalLM"], "dtype": "float32"} | llama
    tower = config.vision
    clip = {
        "model_type": "clip_vision_model",
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "num_channels": tower.channels,
        "image_size": tower.image_size,
        "patch_size": tower.patch,
        "hidden_act": tower.activation,
        "layer_norm_eps": tower.norm_eps,
        "projection_dim": tower.width,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "float32",
        "text_config": llama,
        "vision_config": clip,
        "image_token_index": config.image_token,
        "image_seq_length": tower.features,
        "projector_hidden_act": config.projector_activation,
        "multimodal_projector_bias": config.projector_bias,
        "vision_feature_layer": tower.feature_layer,
        "vision_feature_select_strategy": "full" if tower.keep_class_token else "default",
        "tie_word_embeddings": text.tied_head,
    }


def _text(data: dict[str, Any], origin: str, tied: bool) -> TextConfig:
    c = LLAMA_DEFAULTS | data
    heads = c["num_attention_heads"]
    return TextConfig(
        vocab=c["vocab_size"],
        width=c["hidden_size"],
        mlp=c["intermediate_size"],
        layers=c["num_hidden_layers"],
        heads=heads,
        kv_heads=c.get("num_key_value_heads") or heads,
        head_dim=c.get("head_dim") or c["hidden_size"] // heads,
        norm_eps=c["rms_norm_eps"],
        rope=_rope(c, origin),
        tied_head=tied,
        activation=_activation(c["hidden_act"], "hidden_act", origin),
        attention_bias=c["attention_bias"],
        mlp_bias=c["mlp_bias"],
        max_positions=c["max_position_embeddings"],
    )


def _rope(c: dict[str, Any], origin: str) -> RopeConfig:
    """Three spellings: `rope_parameters` (transformers 5), `rope_theta` with `rope_scaling` (4; older: `type`)."""
    given = c.get("rope_parameters") or ({"rope_theta": c.get("rope_theta", ROPE_THETA_DEFAULT)} | (c.get("rope_scaling") or {}))
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise UserError(f"{origin}: rope type must be one of {', '.join(ROPE_KINDS)}, got {kind!r}")
    for name, neutral in (("partial_rotary_factor", 1.0), ("mscale", None), ("mscale_all_dim", None), ("truncate", True)):
        if given.get(name, c.get(name, neutral)) not in (neutral, None):
            raise UserError(f"{origin}: the rope setting {name} is not supported")
    known = {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    }
    return RopeConfig(
        theta=float(given.get("rope_theta", c.get("rope_theta", ROPE_THETA_DEFAULT))),
        kind=kind,
        original_max_positions=given.get("original_max_position_embeddings") or c["max_position_embeddings"],
        **{ours: float(given[theirs]) for theirs, ours in known.items() if given.get(theirs) is not None},
    )


def _vision(data: dict[str, Any], top: dict[str, Any], origin: str) -> VisionConfig:
    c = CLIP_DEFAULTS | data
    layer, strategy = top["vision_feature_layer"], top["vision_feature_select_strategy"]
    for name in ("image_size", "patch_size"):
        if not isinstance(c[name], int):
            raise UserError(f"{origin}: vision_config.{name} must be one number (a square), got {c[name]!r}")
    depth = c["num_hidden_layers"]
    if not isinstance(layer, int) or not (1 <= layer <= depth or -depth <= layer <= -1):
        raise UserError(f"{origin}: vision_feature_layer must be one layer of 1..{depth} or -{depth}..-1, got {layer!r}")
    if strategy not in ("default", "full"):
        raise UserError(f"{origin}: vision_feature_select_strategy must be 'default' or 'full', got {strategy!r}")
    return VisionConfig(
        image_size=c["image_size"],
        patch=c["patch_size"],
        width=c["hidden_size"],
        mlp=c["intermediate_size"],
        layers=depth,
        heads=c["num_attention_heads"],
        norm_eps=c["layer_norm_eps"],
        activation=_activation(c["hidden_act"], "vision_config.hidden_act", origin),
        channels=c["num_channels"],
        feature_layer=layer,
        keep_class_token=strategy == "full",
    )


def _activation(name: str, key: str, origin: str) -> str:
    if name not in ACTIVATIONS:
        raise UserError(f"{origin}: {key} must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return name
