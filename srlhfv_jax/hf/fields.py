"""Types and ranges of the settings in a checkpoint's config.json: checked here, once, before anything is computed from them.

A key means the same wherever it stands, so one table serves all families. What a checkpoint says and no family computes is refused
by name (`UNSUPPORTED`); keys that change nothing of a forward pass in evaluation (dropout, initialisation, caches) are not looked at.
"""

from typing import Any, NamedTuple

from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.files import described, fits

Json = dict[str, Any]


class Rule(NamedTuple):
    """A condition on a value."""

    kind: Any  # of files.fits
    low: float = 0  # of numbers, inclusive
    high: float = 0


COUNT, SIZE, ID = Rule(int, 1, 10_000), Rule(int, 1, 2**24), Rule(int, 0, 2**31 - 1)
POSITIONS, TINY, POSITIVE = Rule(int, 1, 2**31 - 1), Rule(float, 0, 1), Rule(float, 1e-30, 1e30)
FLAG, NAME, IDS, OBJECT = Rule(bool), Rule(str), Rule(list[int]), Rule(dict | None)

RULES = {
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "depth", "num_heads", "merge_size", "scale_factor"), COUNT),
    **dict.fromkeys(("patch_size", "temporal_patch_size", "spatial_merge_size", "image_size", "sliding_window_pattern"), COUNT),
    **dict.fromkeys(("num_channels", "in_channels", "in_chans"), Rule(int, 3, 3)),
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "embed_dim", "mm_tokens_per_image", "window_size"), SIZE),
    **dict.fromkeys(("image_token_index", "image_token_id", "max_window_layers"), ID),
    **dict.fromkeys(("num_key_value_heads", "head_dim"), Rule(int | None, 1, 10_000)),
    **dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings"), POSITIONS),
    "sliding_window": Rule(int | None, 1, 2**31 - 1),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps"), TINY),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq", "query_pre_attn_scalar", "mlp_ratio"), POSITIVE),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"), POSITIVE),
    "attention_factor": Rule(float | None, 1e-30, 1e30),
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings", "multimodal_projector_bias"), FLAG),
    "use_sliding_window": Rule(bool | None),
    **dict.fromkeys(("hidden_act", "hidden_activation", "projector_hidden_act", "model_type", "rope_type", "type"), NAME),
    "vision_feature_select_strategy": NAME,
    "fullatt_block_indexes": IDS,
    "mrope_section": Rule(list[int], 0, 10_000),
    "layer_types": Rule(list[str] | None),
    "image_grid_pinpoints": Rule(list[list[int]] | None, 1, 2**20),
    **dict.fromkeys(("text_config", "vision_config", "rope_parameters", "rope_scaling", "full_attention"), OBJECT),
    "sliding_attention": OBJECT,
}
NO = (None, False, 0, [], {})
UNSUPPORTED = {  # key -> values that leave the computation as it is here
    "per_layer_config": NO,
    "final_logit_softcapping": NO,
    "attn_logit_softcapping": NO,
    "use_bidirectional_attention": NO,
    "partial_rotary_factor": (None, 1),
    "mscale": (None,),
    "mscale_all_dim": (None,),
    "truncate": (None, True),
    "vision_use_head": NO,
}


def filled(defaults: Json, data: Json, origin: str) -> Json:
    """A part of config.json over what holds where it is silent.

    Raises:
        UserError: a value of another type, out of its range, or one that is not supported.
    """
    checked(data, origin)
    return defaults | data


def checked(data: Json, origin: str) -> Json:
    """`data`, where every known key has a value of its type and range.

    Raises:
        UserError: another value.
    """
    if data.get("quantization_config"):  # bitsandbytes, GPTQ, AWQ, fp8, compressed-tensors, ...
        found = shown(data["quantization_config"])
        raise UserError(f"{origin}: quantization_config {found}: quantised weights are not read, give the checkpoint before that")
    for name, value in data.items():
        rule = RULES.get(name)
        if rule is not None and not _follows(value, rule):
            between = f" from {rule.low:g} to {rule.high:g}" if rule.high else ""
            raise UserError(f"{origin}: {name} must be {described(rule.kind)}{between}, got {shown(value)}")
        if name in UNSUPPORTED and value not in UNSUPPORTED[name]:
            raise UserError(f"{origin}: {name} {shown(value)} is not supported: give a checkpoint without it")
    return data


def part(data: Json, name: str, origin: str) -> Json:
    """One section of config.json; {} where there is none."""
    return checked(checked(data, origin).get(name) or {}, f"{origin}: {name}")


def _follows(value: Any, rule: Rule) -> bool:
    return fits(value, rule.kind) and (not rule.high or all(rule.low <= number <= rule.high for number in _numbers(value)))


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for one in value for number in _numbers(one)]
    return [] if value is None else [value]
