"""Every setting of config.json is computed as transformers computes it, changes nothing, or is refused by name."""

import copy
import json
import shutil

import numpy as np
import pytest
import tiny_hf
import torch
import transformers

from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.config import from_json

RUN = dict(dtype="float32", remat="none", scan_unroll=1)
OF_OTHER_TYPES = (None, True, -1, 0, 10**30, 1.5, float("nan"), "", "x" * 5000, [], [1, 2], [[[]]], {}, {"a": 1})
FAMILIES = {
    "llava": tiny_hf.llava_config(),
    "llava_next": tiny_hf.llava_next_config(),
    "qwen2_vl": tiny_hf.qwen2_vl_config(),
    "qwen2_5_vl": tiny_hf.qwen2_5_vl_config(),
    "smolvlm": tiny_hf.smolvlm_config(),
    "gemma3": tiny_hf.gemma3_config(),
    "llama": tiny_hf.llama_config(),
    "mistral": tiny_hf.mistral_config(sliding_window=6),
    "qwen2": tiny_hf.qwen2_config(),
    "gemma3_text": tiny_hf.gemma3_text_config(),
}


def of(family: str) -> dict:
    return json.loads(FAMILIES[family].to_json_string(use_diff=False))


def places(data: dict, path: tuple = ()):
    """Every key at every depth."""
    for key, value in data.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def changed(data: dict, path: tuple, value) -> dict:
    data = copy.deepcopy(data)
    part = data
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return data


@pytest.mark.parametrize("family", FAMILIES)
def test_a_setting_of_any_type_is_read_or_refused_in_one_short_line(family):
    data, refused = of(family), 0
    for path in places(data):
        for value in OF_OTHER_TYPES:
            try:
                from_json(changed(data, path, value), "there", **RUN)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 400, (path, value)
    assert refused > 100


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors"])
@pytest.mark.parametrize("place", [("quantization_config",), ("text_config", "quantization_config")])
def test_quantised_weights_are_refused_by_name(method, place):
    with pytest.raises(UserError, match=f"quantization_config .*{method}.*quantised weights are not read"):
        from_json(changed(of("llava"), place, {"quant_method": method, "bits": 4}), "there", **RUN)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LOCAL = ["sliding_attention", "full_attention", "sliding_attention"]
TEXT_CHANGES = [  # of the decoder
    {"rope_scaling": {"type": "linear", "factor": 4.0}},  # beside rope_parameters, as files that were saved twice have it
    {"rope_scaling": YARN},
    {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}},
    {"rope_scaling": YARN | {"truncate": False}},
    {"rope_parameters": {"rope_type": "proportional", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    {"layer_types": LOCAL[:2], "use_sliding_window": True, "sliding_window": 5},
    {"layer_types": LOCAL, "sliding_window": 5},
    {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "layer_types": None},
    {"sliding_window": 3},
    {"sliding_window": 3, "use_bidirectional_attention": True},
    {"final_logit_softcapping": 2.0},
    {"attn_logit_softcapping": 2.0},
    {"query_pre_attn_scalar": 4},
    {"hidden_act": "relu", "hidden_activation": "relu"},
    {"rms_norm_eps": 0.5},
    {"partial_rotary_factor": 0.5, "rope_parameters": None},
    {"rope_theta": 7.0, "rope_parameters": None},
    {"rope_local_base_freq": 7.0, "rope_parameters": None},
]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma3_text"])
def test_what_changes_the_logits_of_transformers_is_read_or_refused(family, tmp_path):
    """A change that we read as if it were not there must leave their logits as they are."""
    tiny_hf.save(tmp_path / "whole", FAMILIES[family])
    data, differs = of(family), 0
    tokens = torch.tensor([[7, 30, 12, 44, 21, 9, 17, 33, 8, 50, 41, 26]])
    before, state = logits(tmp_path / "whole", tokens)
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    for change in TEXT_CHANGES:
        (tmp_path / "other" / "config.json").write_text(json.dumps(data | change))
        try:
            read = from_json(data | change, "there", **RUN)
        except UserError:
            continue
        try:
            after, _ = logits(tmp_path / "other", tokens, state)
        except Exception:
            continue  # they do not read it either
        alike = np.abs(after - before).max() < 1e-5
        differs += not alike
        assert alike or read != from_json(data, "there", **RUN), change
    assert differs >= 3


def logits(folder, tokens, state=None):
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(folder), attn_implementation="eager"
    )
    state = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict() if state is None else state
    model.load_state_dict(state)
    with torch.no_grad():
        return model.eval()(tokens).logits.numpy(), state


@pytest.mark.parametrize("tower", ["qwen2_vl", "qwen2_5_vl"])
def test_rotations_of_a_tower_that_are_not_computed_are_refused(tower):
    data = changed(of(tower), ("vision_config", "rope_parameters"), {"rope_type": "default", "rope_theta": 500.0})
    with pytest.raises(UserError, match="vision_config.rope_parameters .* is not supported"):
        from_json(data, "there", **RUN)
