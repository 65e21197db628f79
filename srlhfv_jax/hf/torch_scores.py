"""Scores of answers by the heads in this folder, with PyTorch and transformers alone. Copied into every export that has heads.

    model, heads = load("folder")
    scores(model, heads, **processor(text=[prompt + answer + end], images=[image], return_tensors="pt"))

Each score is read at a row's last token, which must be the end-of-sequence token of the answer. Pad on either side. What a score
means stands in score_heads.json: cost > 0 is unsafe, a higher reward is more helpful.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText


def load(folder: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The backbone and its heads, each a vector as wide as the model."""
    sees = hasattr(AutoConfig.from_pretrained(folder), "vision_config")
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return kind.from_pretrained(folder).eval(), load_file(Path(folder) / "score_heads.safetensors")


@torch.no_grad()
def scores(model: torch.nn.Module, heads: dict[str, torch.Tensor], **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """One number for each head and row, from what a processor makes of prompts with their answers."""
    hidden = model(**inputs, output_hidden_states=True).hidden_states[-1].float()  # after the final norm
    mask = inputs["attention_mask"]
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    at_end = hidden[torch.arange(len(hidden)), last]
    return {name: at_end @ head for name, head in heads.items()}
