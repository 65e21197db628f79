"""Adapters in the layout of PEFT, both ways: adapter_config.json and adapter_model.safetensors.

    text/layers/self_attn/q_proj/lora_a [L, rank, in]    base_model.model.<module>.q_proj.lora_A.weight [rank, in], one a layer

Only adapters of the decoder: the names of the towers' modules differ between versions of `transformers`. Those of the decoder do
too, and are read in each of their layouts. Layers of a stack may have adapters of different ranks, or none: smaller ones are filled
with zeros, which stay zero in training. An activated adapter names the tokens at which it begins to act.
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
from srlhfv_jax.hf import adapter_config, hub, leaves, names, weights
from srlhfv_jax.hf.adapter_config import ACTIVATION, CONFIG
from srlhfv_jax.models import vlm
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts, rules

WEIGHTS = weights.ADAPTER
PREFIX = "base_model.model."
TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
Found = dict[tuple[str, str], weights.Tensor]  # by the kernel's name as in `names.table`, and "A" or "B"


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The checkpoint that an adapter lies over: a folder or a hub id."""
    return adapter_config.read(folder).base


def activation(folder: Path) -> tuple[int, ...]:
    """The tokens from which on an adapter acts; (): it acts on all."""
    return adapter_config.read(folder).activation


def write(folder: Path, config: VLMConfig, adapter: dict[str, Any], base: str) -> None:
    """Write both files. All processes call it, the first one writes."""
    tensors, modules, ranks, alphas = {}, [], {}, {}
    for leaf, part in _adapted(config, adapter):
        a, b, scale = (hosts.to_host(part[f"lora_{name}"]) for name in ("a", "b", "scale"))
        own = [index for index in range(len(scale)) if scale[index]]  # layers without an adapter have a scale of 0
        layers = r"\d+" if len(own) == len(scale) else f"(?:{'|'.join(str(leaf.layers[index]) for index in own)})"
        modules.append(re.escape(names.module(config, leaf.name)).replace(r"\{\}", layers))
        for index in own:
            module = names.module(config, leaf.names[index])
            tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a[index], np.float32)
            tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b[index], np.float32)
            ranks[module], alphas[module] = a.shape[1], float(scale[index]) * a.shape[1]
    if hosts.process_index() > 0:
        return
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    name, _, revision = base.partition("@") if hub.is_model_id(base) else (base, "", "")
    rank, alpha = next(iter(ranks.values()), 1), next(iter(alphas.values()), 1.0)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if config.activation else None,  # the one task whose class looks for these tokens
        "base_model_name_or_path": name,
        "revision": revision or None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(module): own for module, own in ranks.items() if own != rank},
        "alpha_pattern": {re.escape(module): own for module, own in alphas.items() if own != alpha},
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
        UserError: not a plain LoRA, other parts of the backbone beside it, or tensors that its settings do not name, that fit no
            kernel of the decoder, are of another shape, or hold NaN.
    """
    settings = adapter_config.read(folder)
    _nothing_else_was_trained(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has {CONFIG} and no {WEIGHTS}: copy the missing file")
    tensors = _by_kernel(folder / WEIGHTS, config)
    shapes = jax.eval_shape(lambda: vlm.init(config, jax.random.key(0)))
    adapter: dict[str, Any] = {}
    for leaf in names.table(config):
        if leaf.layers is None or leaf.path[0] != "text" or leaf.path[-1] != "kernel":
            continue
        sizes = leaves.stored_shape(config, leaf, leaves.leaf(shapes, leaf.path).shape)
        layers = [_of_layer(folder / WEIGHTS, settings, config, tensors, name, sizes) for name in leaf.names]
        if any(layer is not None for layer in layers):
            leaves.put(adapter, leaf.path[:-1], _stacked(layers, sizes))
    if tensors:
        strange = ", ".join(leaves.compressed(sorted(f"{name.removesuffix('.weight')}.lora_{part}" for name, part in tensors)))
        raise UserError(f"{folder / WEIGHTS} holds tensors that fit no kernel of the decoder: {strange}")
    if not adapter:
        raise UserError(f"{folder / WEIGHTS} holds no adapter of the decoder")
    return jax.tree.map(jnp.asarray, adapter) if mesh is None else rules.place(adapter, mesh)


def _nothing_else_was_trained(folder: Path) -> None:
    """Some trainers keep what they trained beside the adapter (a projector, embeddings) in a file of its own."""
    allowed = re.compile(
        r"adapter_model\..*|.*_heads\.safetensors|(optimizer|scheduler|scaler|training_args|rng_state|random_states).*"
    )
    backbone = re.compile(r"model(-\d+-of-\d+)?\.safetensors|pytorch_model.*\.bin|consolidated.*")
    for path in sorted(folder.iterdir()):
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".safetensors") and not allowed.fullmatch(path.name):
            if backbone.fullmatch(path.name) and weights.is_checkpoint(folder):
                continue  # a whole checkpoint with an adapter over it
            raise UserError(
                f"{folder} has {path.name} beside its adapter: other weights were trained with it. Merge all into one checkpoint, and "
                "give that"
            )


def _by_kernel(path: Path, config: VLMConfig) -> Found:
    """Tensors by the kernel that they lie over; the names of kernels have several layouts."""
    tensors: Found = {}
    for name, tensor in weights.open_file(path).items():
        parts = TENSOR.fullmatch(name)
        key = (names.published(config, f"{parts['module']}.weight"), parts["part"]) if parts else (name, "?")
        if key in tensors:
            raise UserError(f"{path} holds two adapters over {key[0]}, by an older and a newer name")
        tensors[key] = tensor
    return tensors


def _of_layer(
    path: Path, settings: adapter_config.Settings, config: VLMConfig, found: Found, name: str, sizes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """A [rank, in], B [out, rank] and the scale of the adapter over one kernel; None: there is none."""
    module = (names.module(config, name), name.removesuffix(".weight"))
    a, b = (found.pop((name, part), None) for part in "AB")
    targeted = adapter_config.targeted(settings, module)
    if (a is None) != (b is None) or targeted and a is None:
        raise UserError(f"{path} lacks {name.removesuffix('.weight')}.lora_{'A' if a is None else 'B'}, which {CONFIG} names")
    if a is None:
        return None
    if targeted is False:
        raise UserError(f"{path} holds an adapter over {name.removesuffix('.weight')}, which {CONFIG} does not name")
    rank, scale = adapter_config.rank_and_scale(settings, module)
    read = []
    for tensor, shape in ((a, (rank, sizes[1])), (b, (sizes[0], rank))):
        if tensor.shape != shape:
            raise UserError(f"{path}: the adapter over {name} has a tensor of {list(tensor.shape)}, expected {list(shape)}")
        read.append(weights.numbers(path, name, tensor))
    return (*read, scale)


def _stacked(layers: list[tuple[np.ndarray, np.ndarray, float] | None], sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rank = max(len(layer[0]) for layer in layers if layer is not None)
    a, b = np.zeros((len(layers), rank, sizes[1]), np.float32), np.zeros((len(layers), sizes[0], rank), np.float32)
    scale = np.zeros(len(layers), np.float32)
    for index, layer in enumerate(layers):
        if layer is not None:
            own = len(layer[0])
            a[index, :own], b[index, :, :own], scale[index] = layer
    return {"lora_a": a, "lora_b": b, "lora_scale": scale}


def _adapted(config: VLMConfig, adapter: dict[str, Any]):
    """(leaf of the kernel, the adapter over it) of every adapted kernel."""
    kernels = []
    for leaf in names.table(config):
        node: Any = adapter
        for part in leaf.path[:-1]:
            node = node.get(part, {})
        if leaf.path[-1] == "kernel" and "lora_a" in node:
            kernels.append((leaf, node))
    if any(leaf.path[0] != "text" for leaf, _ in kernels):
        raise UserError("an adapter over the vision tower cannot be written for PEFT: target the decoder (text/) alone")
    return kernels
