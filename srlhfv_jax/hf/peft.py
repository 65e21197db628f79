"""Adapters in the layout of PEFT, both ways: adapter_config.json and adapter_model.safetensors.

    text/layers/self_attn/q_proj/lora_a [L, rank, in]    base_model.model.<module>.q_proj.lora_A.weight [rank, in], one a layer

Only adapters of the decoder: the names of the towers' modules differ between versions of `transformers`. An activated adapter names
the tokens at which it begins to act, which PEFT looks for in its input.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import leaves, names, weights
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts, rules

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ACTIVATION = "alora_invocation_tokens"
PREFIX = "base_model.model."


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The checkpoint that an adapter lies over: a folder or a hub id."""
    found = json.loads((folder / CONFIG).read_text()).get("base_model_name_or_path")
    if not found:
        raise UserError(f"{folder / CONFIG} does not say base_model_name_or_path: which checkpoint does the adapter lie over?")
    return found


def activation(folder: Path) -> tuple[int, ...]:
    """The tokens from which on an adapter acts; (): it acts on all.

    Raises:
        UserError: they are not token ids.
    """
    found = json.loads((folder / CONFIG).read_text()).get(ACTIVATION) or []
    if not isinstance(found, list) or not all(isinstance(token, int) and token >= 0 for token in found):
        raise UserError(f"{folder / CONFIG}: {ACTIVATION} must be a list of token ids, got {found!r}")
    return tuple(found)


def write(folder: Path, config: VLMConfig, adapter: dict[str, Any], base: str) -> None:
    """Write both files. All processes call it, the first one writes."""
    tensors, modules, rank, alpha = {}, [], 0, 0.0
    for leaf, part in _adapted(config, adapter):
        a, b, scale = (hosts.to_host(part[f"lora_{name}"]) for name in ("a", "b", "scale"))
        rank = a.shape[1]
        alpha = float(scale[0]) * rank
        modules.append(re.escape(names.module(config, leaf.name)).replace(r"\{\}", r"\d+"))
        for index, name in enumerate(leaf.names):
            module = PREFIX + names.module(config, name)
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(a[index], np.float32)
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(b[index], np.float32)
    if hosts.process_index() > 0:
        return
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if config.activation else None,  # the one task whose class looks for these tokens
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": "|".join(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    } | ({ACTIVATION: config.activation} if config.activation else {})
    (folder / CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def read(folder: Path, config: VLMConfig, mesh: Mesh | None) -> dict[str, Any]:
    """The adapter as a tree (models/lora.py), float32, in its shards.

    Raises:
        UserError: not a plain LoRA, or tensors that fit no kernel of the decoder, or only some of its layers.
    """
    settings = json.loads((folder / CONFIG).read_text())
    for key, plain in (("peft_type", "LORA"), ("bias", "none"), ("use_dora", False), ("use_rslora", False), ("rank_pattern", {})):
        if settings.get(key, plain) != plain:
            raise UserError(f"{folder / CONFIG}: {key} is {settings[key]!r}; only plain LoRA adapters ({key} {plain!r}) are read")
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), (int, float)) or not settings[key] > 0:
            raise UserError(f"{folder / CONFIG}: {key} must be a positive number, got {settings.get(key)!r}")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has {CONFIG} and no {WEIGHTS}: copy the missing file")
    tensors = weights.open_file(folder / WEIGHTS)
    adapter: dict[str, Any] = {}
    for leaf in names.table(config):
        if leaf.layers is None or leaf.path[0] != "text" or leaf.path[-1] != "kernel":
            continue
        stems = [PREFIX + names.module(config, name) for name in leaf.names]
        if not any(f"{stem}.lora_A.weight" in tensors for stem in stems):
            continue
        try:
            a, b = (
                np.stack([weights.read(tensors.pop(f"{stem}.lora_{part}.weight"), ()) for stem in stems]).astype(np.float32)
                for part in "AB"
            )
        except KeyError as missing:
            raise UserError(f"{folder / WEIGHTS} lacks {missing}: an adapter must lie over all layers or none") from None
        scale = np.full(len(stems), settings["lora_alpha"] / settings["r"], np.float32)
        leaves.put(adapter, leaf.path[:-1], {"lora_a": a, "lora_b": b, "lora_scale": scale})
    if tensors:
        strange = ", ".join(leaves.compressed(sorted(tensors)))
        raise UserError(f"{folder / WEIGHTS} holds tensors that fit no kernel of the decoder: {strange}")
    return jax.tree.map(jnp.asarray, adapter) if mesh is None else rules.place(adapter, mesh)


def _adapted(config: VLMConfig, adapter: dict[str, Any]):
    """(leaf of the kernel, the adapter over it) of every adapted kernel."""
    found = []
    for leaf in names.table(config):
        node: Any = adapter
        for part in leaf.path[:-1]:
            node = node.get(part, {})
        if leaf.path[-1] == "kernel" and "lora_a" in node:
            found.append((leaf, node))
    if any(leaf.path[0] != "text" for leaf, _ in found):
        raise UserError("an adapter over the vision tower cannot be written for PEFT: target the decoder (text/) alone")
    return found
