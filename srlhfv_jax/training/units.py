"""Units of a file that stand still in training, or that alone are trained (`optimizer.frozen_units`, `optimizer.only_units`).

A unit is an input channel of an output projection of the decoder: a neuron of an MLP, or a head of an attention. Its weights are
those that read it, a neuron's row of down_proj and a head's rows of o_proj, and those that make it: the rows of gate_proj and up_proj,
or of q_proj, k_proj and v_proj, with their biases. If only what reads it stood still, training could put another value into it. Keys and
values that several heads share stand still if one of these heads does. Norms belong to no unit.

`srlhfv weights units` writes the file: a safetensors file of scores and sets, with a fingerprint of the weights that they are of.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from srlhfv_jax import files
from srlhfv_jax.config import OptimizerConfig
from srlhfv_jax.errors import UserError, reason
from srlhfv_jax.parallel import rules

SETS = ("safety", "utility", "complex", "redundant")
FROZEN, TRAINED = ("safety", "complex"), ("redundant",)  # sets of frozen_units; of only_units
LAYERS = "text/layers/"
MADE_OR_READ = {  # kernels of a unit's weights, whose first axis behind the layers is the units'
    "mlp": ("mlp/gate_proj", "mlp/up_proj", "mlp/down_proj"),
    "heads": ("self_attn/q_proj", "self_attn/k_proj", "self_attn/v_proj", "self_attn/o_proj"),
}
READ = ("down_proj", "o_proj")  # their biases are no unit's
AGAIN = "write it again with srlhfv weights units"

Masks = Mapping[
    str, Bool[np.ndarray, "..."]
]  # path -> true at entries that stand still, broadcast to the leaf; other leaves move


class UnitScores(NamedTuple):
    """A number for every unit of the decoder."""

    mlp: Float[np.ndarray, "L F"]
    heads: Float[np.ndarray, "L H"]


class UnitsFile(NamedTuple):
    """Scores of a model's units, and sets of them."""

    fingerprint: str  # of the weights
    shares: Mapping[str, float]  # of each set, as asked for
    safe: UnitScores
    useful: UnitScores
    sets: Mapping[str, UnitScores]  # of bools, by SETS


def write(path: Path, units: UnitsFile) -> None:
    """Write a file of units; it appears whole or not at all."""
    tensors = {f"{name}.{kind}": values for name, of in _named(units).items() for kind, values in of._asdict().items()}
    metadata = {"fingerprint": units.fingerprint, "shares": json.dumps(dict(units.shares))}
    beside = path.with_name(path.name + ".part")
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, beside, metadata)
    files.put(beside, path)


def read(path: str, setting: str) -> UnitsFile:
    """Read a file of units.

    Args:
        setting: that names it, for messages.

    Raises:
        UserError: it is missing, damaged, or another file.
    """
    place = files.local(path, setting)
    if not place.is_file():
        raise UserError(f"{setting}={path} is no file: {AGAIN}")
    try:
        with safe_open(str(place), framework="np") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
        shares = json.loads(metadata["shares"])
        named = {name: UnitScores(tensors[f"{name}.mlp"], tensors[f"{name}.heads"]) for name in ("safe", "useful", *SETS)}
        units = UnitsFile(metadata["fingerprint"], shares, named["safe"], named["useful"], {name: named[name] for name in SETS})
    except (SafetensorError, OSError, UnicodeError, KeyError, ValueError) as error:
        raise UserError(f"{setting}={path} is damaged or no file of units ({reason(error)}): {AGAIN}") from None
    for kind in UnitScores._fields:
        arrays = {name: of._asdict()[kind] for name, of in named.items()}
        shapes = {values.shape for values in arrays.values()}
        if len(shapes) > 1 or len(shapes.pop()) != 2 or any(arrays[name].dtype != bool for name in SETS):
            raise UserError(f"{setting}={path} is damaged: its arrays of {kind} do not belong together; {AGAIN}")
    return units


def check(config: OptimizerConfig, fingerprint: str) -> None:
    """Check that the units are those of the weights that training starts from.

    Raises:
        UserError: as `read`, or they are of others.
    """
    setting, path = _given(config)
    if path and read(path, setting).fingerprint != fingerprint:
        raise UserError(
            f"{setting}={path} has the units of other weights than those that training starts from: write one for these with srlhfv "
            "weights units"
        )


def still(config: OptimizerConfig, params: Any) -> Masks:
    """The entries of a tree (arrays or shapes) that do not move; {}: all do.

    With only_units nothing of the backbone moves but the weights of these units. Heads beside it move.

    Raises:
        UserError: as `read`; the file is of another architecture, or the tree has no decoder of its own.
    """
    setting, path = _given(config)
    if not path:
        return {}
    units, leaves = read(path, setting), {name: leaf for name, leaf in rules.leaves(params) if name.startswith("backbone/")}
    if not leaves:
        raise UserError(f"{setting} needs a backbone that is trained: an adapter moves every unit of its kernel; leave it empty")
    only = bool(config.only_units)
    chosen = _union([units.sets[name] for name in (TRAINED if only else FROZEN)])
    masks = {path: np.ones((1,) * leaf.ndim, bool) for path, leaf in leaves.items()} if only else {}
    for kind, names in MADE_OR_READ.items():
        of_kind = chosen[kind]
        for name in names:
            for part in ("kernel", "bias"):
                full = f"backbone/{LAYERS}{name}/{part}"
                if full not in leaves or (part == "bias" and name.endswith(READ)):
                    continue
                masks[full] = _entries(~of_kind if only else of_kind, leaves, name, part, f"{setting}={path}")
    return masks


def held(masks: Masks, moved: Any, before: Any) -> Any:
    """`moved`, with the entries that stand still as they were `before`, bit for bit: chosen, since adding 0 makes +0 of -0."""
    if not masks:
        return moved

    def hold(path: tuple[Any, ...], new: jax.Array, old: jax.Array) -> jax.Array:
        mask = masks.get(rules.path_text(path))
        return new if mask is None else jnp.where(mask, old, new)

    return jax.tree.map_with_path(hold, moved, before)


def _given(config: OptimizerConfig) -> tuple[str, str]:
    if config.frozen_units and config.only_units:
        raise UserError(
            f"optimizer.frozen_units={config.frozen_units} and optimizer.only_units={config.only_units} exclude each other: give one"
        )
    return ("optimizer.only_units", config.only_units) if config.only_units else ("optimizer.frozen_units", config.frozen_units)


def _named(units: UnitsFile) -> dict[str, UnitScores]:
    return {"safe": units.safe, "useful": units.useful, **units.sets}


def _union(sets: list[UnitScores]) -> dict[str, Bool[np.ndarray, "..."]]:
    return {kind: np.logical_or.reduce([of._asdict()[kind] for of in sets]) for kind in UnitScores._fields}


def _entries(mask: np.ndarray, leaves: Mapping[str, Any], name: str, part: str, origin: str) -> np.ndarray:
    """A mask of units as one of the entries of a kernel or a bias that belong to them."""
    shape, count = leaves[f"backbone/{LAYERS}{name}/{part}"].shape, mask.shape[1]
    reads = leaves[f"backbone/{LAYERS}self_attn/o_proj/kernel"].shape[1] if name.startswith("self_attn") else shape[1]
    if shape[0] != len(mask) or reads % count or (name.startswith("mlp") and reads != count):
        raise UserError(
            f"{origin} has {len(mask)} layers of {count} units, and {name} of this model is {list(shape)}: it is of another "
            "architecture"
        )
    width = reads // count  # channels of a unit: of a neuron 1
    groups = shape[1] // width  # fewer than heads where these share keys and values
    shared = mask.reshape(len(mask), groups, -1).any(axis=2)
    channels = np.repeat(shared, width, axis=1)
    return channels[:, :, None] if part == "kernel" else channels
