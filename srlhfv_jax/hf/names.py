"""Names of tensors and the parameters that they fill, for every family: the table of its file, and names in whichever layout as that table's."""

import dataclasses
import re

from srlhfv_jax.hf import gemma3, llava, qwen2_vl, smolvlm, text
from srlhfv_jax.hf.leaves import Leaf
from srlhfv_jax.models.config import VLMConfig

NOT_WEIGHTS = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")  # buffers old versions saved
FAMILIES = {  # model_type of config.json -> the file that reads its settings and names its tensors
    "llava": llava,
    "llava_next": llava,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_vl,
    "smolvlm": smolvlm,
    "idefics3": smolvlm,
    "gemma3": gemma3,
}


def table(config: VLMConfig) -> list[Leaf]:
    """Every leaf of a model's parameter tree."""
    if config.vision is None:
        return text.table(config.text, "model.", "lm_head.weight")
    return FAMILIES[config.family].table(config)


def embedding_and_head(config: VLMConfig) -> tuple[str, str]:
    """Names of the two tensors that may be one."""
    untied = dataclasses.replace(config, text=dataclasses.replace(config.text, tied_head=False))
    named = {leaf.path: leaf.name for leaf in table(untied)}
    return named["text", "embed", "embedding"], named["text", "head", "kernel"]


def published(config: VLMConfig, name: str) -> str:
    """A tensor's name in the layout of `table`, whichever of its historical layouts it came in."""
    return name if config.vision is None else FAMILIES[config.family].published(name)


def module(config: VLMConfig, name: str) -> str:
    """The module of a running `transformers` model that holds a decoder's tensor named as in `table`."""
    name = name.removesuffix(".weight")
    return name if config.vision is None else FAMILIES[config.family].module(name)


def ignored(config: VLMConfig, name: str) -> bool:
    """Tensors that are no parameters: buffers, and the second copy of a tied embedding."""
    return bool(NOT_WEIGHTS.search(name)) or (config.text.tied_head and name.endswith("lm_head.weight"))
