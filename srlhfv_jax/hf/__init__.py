"""Hugging Face checkpoints in and out: `load_pretrained` and `export_pretrained`.

load, weights              a folder -> sharded parameters, from ranges of its safetensors
export, card               parameters -> a folder that `transformers` loads, with its model card
classifier, push           the same as a sequence classifier of `transformers`; to the hub
config, fields             config.json, its types and ranges
names, leaves              tensors and the parameters that they fill, both ways
llava, qwen2_vl, smolvlm, gemma3, text, towers    one table a family
fingerprint                whether numbers in a file are of these weights
heads, torch_scores        heads beside a backbone; a script that reads them with PyTorch
revision, torch_revision   vectors added to activations, beside a policy; a script that adds them with PyTorch
calibrations               calibration.json beside score heads
peft, adapter_config, own_files                   adapters in PEFT's layout
processor, hub, published  tokenizer and image processor; hub ids; shapes of published checkpoints
"""

from srlhfv_jax.hf.export import export_pretrained
from srlhfv_jax.hf.load import Pretrained, load_config_and_processor, load_pretrained

__all__ = ["Pretrained", "export_pretrained", "load_config_and_processor", "load_pretrained"]
