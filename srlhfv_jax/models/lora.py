"""Low-rank adapters (Hu et al., arXiv 2106.09685): y = W x + (alpha / rank) B A x, as a small tree that lies over a backbone.

    backbone   text/layers/self_attn/q_proj/kernel
    adapter    text/layers/self_attn/q_proj/lora_a [L, rank, in], lora_b [L, out, rank], lora_scale [L]

An adapter acts on every token; or, activated (Greenewald et al., arXiv 2504.12397), from the last tokens of the prompt on. What
comes before is then the backbone's alone (`bare`): keys and values that all adapters over it share.

`overlay` merges the two dicts leaf by leaf and copies nothing, so that many roles stand on one backbone. B starts at zero: a fresh
adapter changes nothing. The scale travels with the adapter, as a constant that no optimizer touches.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

from srlhfv_jax.config import LoraConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.losses import products
from srlhfv_jax.models.layers import INPUT_FIRST, REVISION

LEAVES = ("lora_a", "lora_b", "lora_scale")


def init(config: LoraConfig, backbone: Any, key: jax.Array) -> dict[str, Any]:
    """A fresh float32 adapter for every kernel of a layer whose path a target matches.

    Args:
        backbone: arrays or their shapes.

    Raises:
        UserError: the rank is not positive, or a target matches no kernel.
    """
    if config.rank < 1:
        raise UserError(f"lora.rank must be at least 1 to train an adapter, got {config.rank}")
    kernels = targeted(config, backbone)
    adapter: dict[str, Any] = {}
    for number, (path, kernel) in enumerate(sorted(kernels.items())):
        layers, width_out, width_in = _sizes(path, kernel)
        a = jax.random.normal(jax.random.fold_in(key, number), (layers, config.rank, width_in)) * width_in**-0.5
        scale = jnp.full((layers,), config.alpha / config.rank, jnp.float32)
        node = adapter
        for part in path.split("/")[:-1]:
            node = node.setdefault(part, {})
        node |= {"lora_a": a, "lora_b": jnp.zeros((layers, width_out, config.rank)), "lora_scale": scale}
    return adapter


def targeted(config: LoraConfig, backbone: Any) -> dict[str, Any]:
    """The kernels of layers whose path a target matches, by path.

    Raises:
        UserError: a target matches none.
    """
    kernels = {path: leaf for path, leaf in _kernels(backbone).items() if any(re.search(t, path) for t in config.targets)}
    for target in config.targets:
        if not any(re.search(target, path) for path in kernels):
            known = ", ".join(sorted(path.removesuffix("/kernel") for path in _kernels(backbone)))
            raise UserError(f"lora.targets pattern {target!r} matches no kernel of a layer: there are {known}")
    return kernels


def overlay(backbone: dict[str, Any], adapter: dict[str, Any]) -> dict[str, Any]:
    """The backbone's dict with the adapter's leaves beside its kernels; no array is copied.

    Raises:
        ValueError: an adapter leaf without a kernel, which the model would never read.
    """
    if not adapter.keys() <= backbone.keys() | set(LEAVES) or ("lora_a" in adapter and "kernel" not in backbone):
        raise ValueError(f"an adapter with {sorted(adapter)} does not fit over {sorted(backbone)}")
    over = {name: overlay(backbone[name], part) if isinstance(part, dict) else part for name, part in adapter.items()}
    return backbone | over


def bare(params: Any) -> Any:
    """The backbone under an adapter, or under a revision (models/revision.py): its dict without their leaves."""
    if isinstance(params, tuple):  # a stack that was split into layers
        return tuple(map(bare, params))
    if isinstance(params, dict):
        return {name: bare(part) for name, part in params.items() if name not in (*LEAVES, REVISION)}
    return params


def merged(backbone: dict[str, Any], adapter: dict[str, Any]) -> dict[str, Any]:
    """The backbone with every adapted kernel replaced by W + scale B A, computed in float32 and kept in W's dtype."""
    return _merged(backbone, adapter, "")


def _merged(backbone: Any, adapter: dict[str, Any], name: str) -> Any:
    if "lora_a" in adapter:
        return backbone | {"kernel": fold(name, backbone["kernel"], adapter)}
    return backbone | {part: _merged(backbone[part], over, part) for part, over in adapter.items()}


def fold(name: str, kernel: jax.Array, adapter: dict[str, jax.Array]) -> jax.Array:
    """W + scale B A of all layers of the dense layer called `name`, in W's own orientation."""
    a, b = adapter["lora_a"], adapter["lora_b"]
    how = dict(precision=products.precision(a.dtype), preferred_element_type=jnp.float32)
    delta = jnp.einsum("lor,lri->loi", b, a, **how)
    delta = delta * adapter["lora_scale"][:, None, None]
    return (kernel.astype(jnp.float32) + (delta.swapaxes(1, 2) if name in INPUT_FIRST else delta)).astype(kernel.dtype)


def _kernels(backbone: Any) -> dict[str, Any]:
    """The stacked kernels of all layers by path."""
    paths = ((jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in jax.tree.leaves_with_path(backbone))
    return {path: leaf for path, leaf in paths if "layers/" in path and path.endswith("/kernel") and "/unused/" not in path}


def _sizes(path: str, kernel: Any) -> tuple[int, int, int]:
    """(layers, outputs, inputs) of a stacked kernel."""
    layers, *sizes = kernel.shape
    return (layers, *(sizes[::-1] if path.split("/")[-2] in INPUT_FIRST else sizes))
