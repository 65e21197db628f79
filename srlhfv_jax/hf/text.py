"""Decoders of the Llama kind: Llama, Mistral, Qwen2, Gemma 3. Their settings in config.json, and their tensors.

The first three differ in what a config leaves out, in the biases of q, k and v, and in windows; Qwen2-VL's decoder is Qwen2's
with three positions a token. Gemma 3 has more norms, two kinds of layers, and scales of its own.
"""

from collections.abc import Iterable
from typing import Any

from srlhfv_jax.config import choose
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.hf import fields
from srlhfv_jax.hf.leaves import SAME, TRANSPOSED, Leaf, of_layers, single
from srlhfv_jax.models.config import RopeConfig, TextConfig
from srlhfv_jax.models.layers import ACTIVATIONS

# What the `transformers` classes assume where config.json is silent; a test compares them.
LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "use_sliding_window": False,  # a Llama has none, whatever its config.json says
    "max_window_layers": 0,
}
MISTRAL = LLAMA | {
    "use_sliding_window": True,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "sliding_window": 4096,
}
QWEN2 = LLAMA | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
QWEN2_VL = QWEN2 | {
    "max_window_layers": 80,
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
}
GEMMA3 = LLAMA | {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
}
DEFAULTS = {"llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen2_vl_text": QWEN2_VL, "gemma3_text": GEMMA3}

ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
ROPE_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor")

ROWS = (
    ("input_layernorm/scale", "input_layernorm.weight", SAME),
    ("self_attn/q_proj/kernel", "self_attn.q_proj.weight", SAME),
    ("self_attn/k_proj/kernel", "self_attn.k_proj.weight", SAME),
    ("self_attn/v_proj/kernel", "self_attn.v_proj.weight", SAME),
    ("self_attn/o_proj/kernel", "self_attn.o_proj.weight", TRANSPOSED),
    ("post_attention_layernorm/scale", "post_attention_layernorm.weight", SAME),
    ("mlp/gate_proj/kernel", "mlp.gate_proj.weight", SAME),
    ("mlp/up_proj/kernel", "mlp.up_proj.weight", SAME),
    ("mlp/down_proj/kernel", "mlp.down_proj.weight", TRANSPOSED),
)
QKV_BIASES = tuple((f"self_attn/{name}/bias", f"self_attn.{name}.bias", SAME) for name in ("q_proj", "k_proj", "v_proj"))
OUTPUT_BIAS = (("self_attn/o_proj/bias", "self_attn.o_proj.bias", SAME),)
NORMS_OF_A_SANDWICH = (
    ("attention_output_norm/scale", "post_attention_layernorm.weight", SAME),
    ("post_attention_layernorm/scale", "pre_feedforward_layernorm.weight", SAME),
    ("mlp_output_norm/scale", "post_feedforward_layernorm.weight", SAME),
)
NORMS_OF_QUERY_AND_KEY = tuple((f"self_attn/{name}/scale", f"self_attn.{name}.weight", SAME) for name in ("q_norm", "k_norm"))
MLP_BIASES = tuple((f"mlp/{name}/bias", f"mlp.{name}.bias", SAME) for name in ("gate_proj", "up_proj", "down_proj"))


def read(data: dict[str, Any], kind: str, origin: str, tied: bool | None = None) -> TextConfig:
    """The decoder that a (text) config describes.

    Args:
        tied: whether the head is the embedding, where another part of config.json says so; None: this part does.
    Raises:
        UserError: a setting of the wrong type, out of its range, that fits no other or is not supported.
    """
    c = fields.filled(DEFAULTS[kind], data, origin)
    config = _gemma3(c, origin, tied) if kind == "gemma3_text" else _plain(c, kind, origin, tied)
    if config.heads % config.kv_heads or config.head_dim % 2 or config.width % config.heads and not c["head_dim"]:
        raise UserError(
            f"{origin}: hidden_size {config.width}, num_attention_heads {config.heads}, num_key_value_heads {config.kv_heads} and "
            f"head_dim {config.head_dim} do not go together: heads must divide, and head_dim be even"
        )
    return config


def _plain(c: dict[str, Any], kind: str, origin: str, tied: bool | None) -> TextConfig:
    """Llama, Mistral and Qwen2."""
    heads, depth = c["num_attention_heads"], c["num_hidden_layers"]
    qwen, rope = kind.startswith("qwen2"), c.get("rope_scaling") or c.get("rope_parameters") or {}
    if rope.keys() & {"full_attention", "sliding_attention"}:
        raise UserError(f"{origin}: rope_parameters by kind of layer are not supported in this family, got {shown(rope)}")
    window = c["sliding_window"] if c["use_sliding_window"] else None
    return TextConfig(
        vocab=c["vocab_size"],
        width=c["hidden_size"],
        mlp=c["intermediate_size"],
        layers=depth,
        heads=heads,
        kv_heads=c["num_key_value_heads"] or heads,
        head_dim=c["head_dim"] or c["hidden_size"] // heads,
        norm_eps=c["rms_norm_eps"],
        rope=_rope({"rope_theta": c["rope_theta"]} | rope, c, origin),
        tied_head=c["tie_word_embeddings"] if tied is None else tied,
        activation=choose(c["hidden_act"], f"{origin}: hidden_act", *ACTIVATIONS),
        qkv_bias=qwen or c["attention_bias"],
        output_bias=c["attention_bias"] and not qwen,
        mlp_bias=c["mlp_bias"] and kind == "llama",
        max_positions=c["max_position_embeddings"],
        window=window or 0,
        local_layers=_local_layers(c, range(c["max_window_layers"] if window else depth, depth), window, origin, free=qwen),
    )


def _gemma3(c: dict[str, Any], origin: str, tied: bool | None) -> TextConfig:
    depth, pattern = c["num_hidden_layers"], c["sliding_window_pattern"]
    local = [layer for layer in range(depth) if (layer + 1) % pattern]
    ropes = c.get("rope_parameters") or {}
    far = {"rope_theta": c["rope_theta"]} | fields.part(ropes, "full_attention", origin) | (c.get("rope_scaling") or {})
    near = {"rope_theta": c["rope_local_base_freq"]} | fields.part(ropes, "sliding_attention", origin)
    return TextConfig(
        vocab=c["vocab_size"],
        width=c["hidden_size"],
        mlp=c["intermediate_size"],
        layers=depth,
        heads=c["num_attention_heads"],
        kv_heads=c["num_key_value_heads"] or c["num_attention_heads"],
        head_dim=c["head_dim"] or c["hidden_size"] // c["num_attention_heads"],
        norm_eps=c["rms_norm_eps"],
        rope=_rope(far, c, origin),
        tied_head=c["tie_word_embeddings"] if tied is None else tied,
        activation=choose(c["hidden_activation"], f"{origin}: hidden_activation", *ACTIVATIONS),
        qkv_bias=c["attention_bias"],
        output_bias=c["attention_bias"],
        max_positions=c["max_position_embeddings"],
        window=c["sliding_window"] or 0,
        local_layers=_local_layers(c, local, c["sliding_window"], origin, free=True),
        local_rope=_rope(near, c, origin),
        norm_offset=1.0,
        sandwich=True,
        qk_norm=True,
        query_scale=c["query_pre_attn_scalar"] ** -0.5,
        embed_scale=c["hidden_size"] ** 0.5,
    )


def table(c: TextConfig, prefix: str, head: str) -> list[Leaf]:
    """Every leaf of a decoder whose tensors begin with `prefix` and whose head is called `head`."""
    rows = ROWS
    if c.sandwich:
        replaced = {ours for ours, *_ in NORMS_OF_A_SANDWICH}
        rows = tuple(row for row in ROWS if row[0] not in replaced) + NORMS_OF_A_SANDWICH
    rows += NORMS_OF_QUERY_AND_KEY * c.qk_norm
    rows += QKV_BIASES * c.qkv_bias + OUTPUT_BIAS * c.output_bias + MLP_BIASES * c.mlp_bias
    return [
        single("text/embed/embedding", prefix + "embed_tokens.weight"),
        *of_layers(("text", "layers"), prefix + "layers.{}.", range(c.layers), rows),
        single("text/norm/scale", prefix + "norm.weight"),
        *([] if c.tied_head else [single("text/head/kernel", head)]),
    ]


def _local_layers(c: dict[str, Any], usual: Iterable[int], window: int | None, origin: str, *, free: bool) -> tuple[int, ...]:
    """Layers that see a window only: those of `layer_types`, where config.json has it.

    Args:
        usual: these layers, where it has not.
        free: whether `transformers` lets layers of this family differ; the others must have their usual kind.
    Raises:
        UserError: kinds that are none, too few or too many, without a window, or of a family that has none.
    """
    depth, usual = c["num_hidden_layers"], tuple(usual)
    kinds = c.get("layer_types") or ["sliding_attention" if layer in usual else "full_attention" for layer in range(depth)]
    local = tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    if len(kinds) != depth or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise UserError(
            f"{origin}: layer_types must say full_attention or sliding_attention for {depth} layers, got {shown(kinds)}"
        )
    if local and not window:
        raise UserError(
            f"{origin}: layer_types has sliding_attention, and there is no window: sliding_window must be a number"
            + ", use_sliding_window true" * ("use_sliding_window" in c)
        )
    if not free and local != usual:
        raise UserError(f"{origin}: layer_types {shown(kinds)} is not supported: layers of this family are all alike")
    return local


def _rope(given: dict[str, Any], c: dict[str, Any], origin: str) -> RopeConfig:
    """Three spellings: `rope_parameters` (transformers 5), `rope_theta` with `rope_scaling` (4, and first where both are; older:
    `type`)."""
    fields.checked(given, origin)
    kind = given.get("rope_type", given.get("type", "default"))
    sections = tuple(given.get("mrope_section") or ())
    if kind == "mrope":
        kind = "default"
    choose(kind, f"{origin}: rope type", *ROPE_KINDS)
    needed = {"linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",), "llama3": ROPE_NUMBERS[:3]}
    for name in needed.get(kind, ()):
        if name not in given:
            raise UserError(f"{origin}: a rope of type {kind} needs {name}")
    if kind == "llama3" and given["high_freq_factor"] <= given["low_freq_factor"]:
        raise UserError(f"{origin}: high_freq_factor must be above low_freq_factor")
    return RopeConfig(
        theta=float(given["rope_theta"]),
        kind=kind,
        original_max_positions=given.get("original_max_position_embeddings") or c["max_position_embeddings"],
        sections=sections,
        **{name: float(given[name]) for name in ROPE_NUMBERS if given.get(name) is not None},
    )
