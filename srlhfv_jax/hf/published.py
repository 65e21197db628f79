"""config.json of the checkpoints that people train, by their hub ids: shapes are known before anything is downloaded.

Only what decides a shape, a name or the mathematics is written here; everything else has the defaults of the `transformers`
classes. Values are the authors'. A test builds each one in `transformers` and compares every tensor's name and shape.
"""

from typing import Any

from srlhfv_jax.config import choose
from srlhfv_jax.hf.config import from_json
from srlhfv_jax.models.config import VLMConfig

Json = dict[str, Any]


def published(hub_id: str, *, dtype: str = "float32", remat: str = "none", scan_unroll: int = 1) -> VLMConfig:
    """The model behind this hub id.

    Raises:
        UserError: it is not one of CONFIGS; the nearest is named.
    """
    choose(hub_id, "published checkpoint", *CONFIGS)
    return from_json(CONFIGS[hub_id], hub_id, dtype=dtype, remat=remat, scan_unroll=scan_unroll)


def _text(width: int, mlp: int, layers: int, heads: int, kv_heads: int, **more: Any) -> Json:
    shape = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers}
    return shape | {"num_attention_heads": heads, "num_key_value_heads": kv_heads} | more


def _llava(family: str, text: Json) -> Json:
    tower = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    tower |= {"num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768}
    return {"model_type": family, "text_config": text, "vision_config": tower, "image_token_index": 32000}


def _vicuna(*shape: int) -> Json:
    return _text(*shape, model_type="llama", vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5)


def _mistral(*shape: int) -> Json:
    reach = {"max_position_embeddings": 32768, "sliding_window": None, "rope_theta": 1e6}
    return _text(*shape, model_type="mistral", vocab_size=32064, rms_norm_eps=1e-5, **reach)


def _qwen2_vl(*shape: int, vocab: int, tied: bool = False) -> Json:
    """The decoder's settings are at the top, as published."""
    rope = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    tower = {"model_type": "qwen2_vl", "depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": shape[0]}
    more = {"vocab_size": vocab, "tie_word_embeddings": tied, "rms_norm_eps": 1e-6, "image_token_id": 151655}
    return _text(*shape, **rope, **more) | {"model_type": "qwen2_vl", "vision_config": tower}


def _qwen2_5_vl(*shape: int, vocab: int, tied: bool = False) -> Json:
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420 if shape[0] < 5120 else 3456, "num_heads": 16}
    tower |= {"out_hidden_size": shape[0], "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu"}
    return _qwen2_vl(*shape, vocab=vocab, tied=tied) | {"model_type": "qwen2_5_vl", "vision_config": tower}


_SIGLIP_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_SIGLIP_BASE |= {"image_size": 512, "patch_size": 16}
_SIGLIP_LARGE = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}


def _smolvlm(family: str, tower: Json, scale: int, *shape: int, vocab: int = 49280, theta: float = 1e5) -> Json:
    """The first generation is of the family Idefics3, the second of its own."""
    text = _text(*shape, model_type="llama", vocab_size=vocab, rms_norm_eps=1e-5, rope_theta=theta)
    tower = tower | {"model_type": "smolvlm_vision" if family == "smolvlm" else "idefics3_vision"}
    whole = {"model_type": family, "text_config": text | {"tie_word_embeddings": False}, "vision_config": tower}
    return whole | {"scale_factor": scale, "image_token_id": 49190 if vocab == 49280 else 49153, "tie_word_embeddings": False}


def _gemma3(*shape: int, **more: Any) -> Json:
    tower = _SIGLIP_LARGE | {"model_type": "siglip_vision_model", "image_size": 896, "patch_size": 14, "vision_use_head": False}
    text = _text(*shape, model_type="gemma3_text", sliding_window=1024, rope_scaling={"factor": 8.0, "rope_type": "linear"})
    return {"model_type": "gemma3", "text_config": text | more, "vision_config": tower, "mm_tokens_per_image": 256}


_SMOL_2B = _SIGLIP_LARGE | {"image_size": 384, "patch_size": 14}, 3, 2048, 8192, 24, 32, 32

CONFIGS: dict[str, Json] = {
    "llava-hf/llava-1.5-7b-hf": _llava("llava", _vicuna(4096, 11008, 32, 32, 32)),
    "llava-hf/llava-1.5-13b-hf": _llava("llava", _vicuna(5120, 13824, 40, 40, 40)),
    "llava-hf/llava-v1.6-vicuna-7b-hf": _llava("llava_next", _vicuna(4096, 11008, 32, 32, 32)),
    "llava-hf/llava-v1.6-mistral-7b-hf": _llava("llava_next", _mistral(4096, 14336, 32, 32, 8)),
    "Qwen/Qwen2-VL-2B-Instruct": _qwen2_vl(1536, 8960, 28, 12, 2, vocab=151936, tied=True),
    "Qwen/Qwen2-VL-7B-Instruct": _qwen2_vl(3584, 18944, 28, 28, 4, vocab=152064),
    "Qwen/Qwen2-VL-72B-Instruct": _qwen2_vl(8192, 29568, 80, 64, 8, vocab=152064),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5_vl(2048, 11008, 36, 16, 2, vocab=151936, tied=True),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5_vl(3584, 18944, 28, 28, 4, vocab=152064),
    "Qwen/Qwen2.5-VL-32B-Instruct": _qwen2_5_vl(5120, 27648, 64, 40, 8, vocab=152064),
    "Qwen/Qwen2.5-VL-72B-Instruct": _qwen2_5_vl(8192, 29568, 80, 64, 8, vocab=152064),
    "HuggingFaceTB/SmolVLM-256M-Instruct": _smolvlm("idefics3", _SIGLIP_BASE, 4, 576, 1536, 30, 9, 3),
    "HuggingFaceTB/SmolVLM-500M-Instruct": _smolvlm("idefics3", _SIGLIP_BASE, 4, 960, 2560, 32, 15, 5),
    "HuggingFaceTB/SmolVLM-Instruct": _smolvlm("idefics3", *_SMOL_2B, vocab=49155, theta=273768.0),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": _smolvlm("smolvlm", _SIGLIP_BASE, 4, 576, 1536, 30, 9, 3),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": _smolvlm("smolvlm", _SIGLIP_BASE, 4, 960, 2560, 32, 15, 5),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": _smolvlm("smolvlm", *_SMOL_2B, theta=273768.0),
    "google/gemma-3-4b-it": _gemma3(2560, 10240, 34, 8, 4),
    "google/gemma-3-12b-it": _gemma3(3840, 15360, 48, 16, 8),
    "google/gemma-3-27b-it": _gemma3(5376, 21504, 62, 32, 16, head_dim=128, query_pre_attn_scalar=168),
}
