"""Checkpoints whose weights are put together number by number: whether they are of one model, and their parameters in memory."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from srlhfv_jax.data import chat
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import peft, revision, weights
from srlhfv_jax.hf.load import Pretrained, backbone_name, checkpoint_folder, load_config_and_processor, load_pretrained
from srlhfv_jax.models import vlm
from srlhfv_jax.models.config import VLMConfig, architecture
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.weights.merge import difference

Paths = Mapping[str, str]  # checkpoints by their name in messages, "--to=W/safe"


def check(paths: Paths) -> None:
    """Compare checkpoints with the first one, without reading their weights.

    Raises:
        UserError: one is an activated adapter or has a revision, or has another architecture or tokenizer.
    """
    for path in paths.values():
        folder = checkpoint_folder(path)
        if peft.is_adapter(folder) and peft.activation(folder):
            raise UserError(
                f"{folder} is an activated adapter, which cannot be merged: it leaves the prompt to the backbone. Give whole weights, "
                "or an adapter that acts everywhere"
            )
        if revision.is_revised(folder):
            raise UserError(
                f"{folder} has a revision, which no weights can be merged with: it acts from the end of the prompt on. Give the policy that "
                "it was fitted on"
            )
    (first, (config, processor)), *rest = [(name, load_config_and_processor(path)) for name, path in paths.items()]
    for name, (other, processor_of_other) in rest:
        _check_architecture(config, other, first, name)
        _check_tokens(processor, processor_of_other, first, name)


def in_memory(paths: Paths, meant: str) -> list[Pretrained]:
    """The checkpoints with their parameters on the host: the device holds one tree at a time. Adapters are merged into their backbones.

    The parameters are bfloat16 where all checkpoints are stored in it, else float32.

    Args:
        meant: participle of what is not done to their heads, "merged".

    Raises:
        UserError: one has another architecture than the first, as its weights show.
    """
    dtype = "bfloat16" if {dtype for path in paths.values() for dtype in _dtypes(path)} == {"BF16"} else "float32"
    models = [_in_memory(path, dtype, meant) for path in paths.values()]
    first, *_ = paths
    for name, model in zip(paths, models, strict=True):
        _check_architecture(
            models[0].config, model.config, first, name
        )  # whether the head is the embedding is seen in the weights
    return models


def _check_architecture(a: VLMConfig, b: VLMConfig, first: str, other: str) -> None:
    """Raise UserError that names the first leaf, or else the first part of the config, in which two models differ."""
    facts = [_facts(dataclasses.asdict(architecture(config))) for config in (a, b)]
    if found := difference(_shapes(a), _shapes(b)) or difference(*facts):
        raise UserError(f"{first} and {other} have other architectures ({found}): give two that were trained from one")


def _shapes(config: VLMConfig) -> dict[str, list[int]]:
    shapes = jax.eval_shape(lambda: vlm.init(config, jax.random.key(0)))
    return {path: list(leaf.shape) for path, leaf in rules.leaves(shapes)}


def _facts(parts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Parts of a config by name, "text.rope.theta"."""
    facts: dict[str, Any] = {}
    for name, value in parts.items():
        facts |= _facts(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return facts


def _check_tokens(a: Any, b: Any, first: str, other: str) -> None:
    ids = [chat.codec(processor).tokenizer.get_vocab() for processor in (a, b)]
    if found := difference(dict(sorted(ids[0].items())), ids[1]):
        raise UserError(f"{first} and {other} have other tokenizers ({found}): give two that were trained from one")


def _dtypes(path: str) -> set[str]:
    """Dtypes that a checkpoint is stored in, as safetensors names them; of an adapter, also those of what it lies over."""
    tensors, folder = weights.open_tensors(checkpoint_folder(backbone_name(path))), checkpoint_folder(path)
    if peft.is_adapter(folder):
        tensors |= weights.open_file(folder / weights.ADAPTER)
    return {tensor.dtype for tensor in tensors.values() if tensor.dtype in weights.FLOATS}


def _in_memory(path: str, dtype: str, meant: str) -> Pretrained:
    model = load_pretrained(path, dtype=dtype)
    heads = [*sorted(model.heads), *(["guard"] if (model.path / weights.GUARD_FILE).is_file() else [])]
    if heads:
        hosts.say(f"{path} has heads ({', '.join(heads)}), which are not {meant}: what is written are policies alone")
    return model._replace(params=hosts.to_host(model.params))
