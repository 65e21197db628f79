"""The policy of this folder with its revision, with PyTorch and transformers alone. Copied into every export that has one.

    model = load("folder")
    model.generate(**inputs)                                  one prompt, or several padded on the left

    model = load("folder", prompt=inputs["input_ids"].shape[1])
    model(**processor(text=[prompt + answer], ...)).logits    of prompts of so many tokens with their answers behind them

A constant vector is added to activations from the prompt's last token on; revision.json says where and how strongly.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText


def load(folder: str, prompt: int | None = None) -> torch.nn.Module:
    """The revised model. Without `prompt` each pass is one of `generate`: its last token alone is revised."""
    sees = hasattr(AutoConfig.from_pretrained(folder), "vision_config")
    model = (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_pretrained(folder).eval()
    about = json.loads((Path(folder) / "revision.json").read_text())
    vectors = about["strength"] * load_file(Path(folder) / "revision.safetensors")["revision"]
    names = [name for name, _ in model.named_modules() if re.search(r"layers\.\d+\.self_attn\.o_proj$", name)]  # of the decoder
    for name, vector in zip(names, vectors, strict=True):
        place = name if about["site"] == "heads" else name.removesuffix(".self_attn.o_proj")
        model.get_submodule(place).register_forward_hook(_adds(vector, -1 if prompt is None else prompt - 1))
    return model


def _adds(vector: torch.Tensor, start: int):
    def hook(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[:, start:] += vector.to(hidden)

    return hook
