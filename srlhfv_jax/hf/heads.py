"""The heads beside a backbone, of scores and of a guard: tensors, and the JSON file that says what they mean.

Of that file every fact that changes what a head means is checked: heads of another reading of it would score, and judge, in silence.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from srlhfv_jax.data.taxonomies import LEVELS, SEVERITIES, SUMS
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.files import read_json, take
from srlhfv_jax.hf import weights
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import rules

PLACE = {"pooling": "last_token", "after": "final_norm"}  # where heads read the hidden states
SCORES = PLACE | {"sign": "cost > 0 means unsafe; reward: higher is more helpful"}
EARLIER_SIGNS = ("label", "graded")  # earlier exports name here the labels that they learned from
GUARD_PARTS = ("input", "output")
GUARD_FACTS = {"categories": list[str], "thresholds": dict[str, float], "template": str, "max_pixels": int}


def load_heads(config: VLMConfig, folder: Path, mesh: Mesh | None) -> dict[str, dict[str, jax.Array]]:
    """The score heads beside the backbone, in float32; {} where there are none.

    Raises:
        UserError: no score_heads.json beside them, one that means something else, or heads of another shape.
    """
    path = folder / weights.HEADS_FILE
    if not path.is_file():
        return {}
    tensors, heads = weights.open_file(path), {}
    for name, tensor in tensors.items():
        if tensor.shape != (config.text.width,):
            raise UserError(f"{path}: the head {shown(name)} has shape {tensor.shape}, the backbone needs ({config.text.width},)")
        heads[name] = {"kernel": jnp.asarray(weights.numbers(path, name, tensor))}
    meta = folder / weights.HEADS_META
    described = read_json(meta)
    if sorted(take(described, "heads", list[str], str(meta))) != sorted(tensors):
        raise UserError(f"{meta} names the heads {shown(described['heads'])}, and {path.name} holds {shown(sorted(tensors))}")
    _check_meaning(described, PLACE if described.get("sign") in EARLIER_SIGNS else SCORES, meta)
    return heads if mesh is None else rules.place(heads, mesh)


def load_guard(config: VLMConfig, folder: Path, mesh: Mesh | None) -> tuple[dict[str, dict[str, jax.Array]], dict[str, Any]]:
    """The guard's heads beside the backbone, in float32, and what guard.json says of them.

    Raises:
        UserError: there are none, or heads of another shape or meaning.
    """
    path, meta = folder / weights.GUARD_FILE, folder / weights.GUARD_META
    if not (path.is_file() and meta.is_file()):
        raise UserError(f"{folder} has no guard ({weights.GUARD_FILE}, {weights.GUARD_META}): give what srlhfv guard made")
    described = describe_guard(folder)
    count = len(described["categories"])
    expected = {"severity.kernel": (config.text.width,), "severity.bias": (LEVELS,)}
    expected |= {"categories.kernel": (count, config.text.width), "categories.bias": (count,)}
    tensors = weights.open_file(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != expected:
        raise UserError(f"{path} holds {shown(shapes)}, the backbone and {weights.GUARD_META} need {expected}")
    heads: dict[str, dict[str, jax.Array]] = {"severity": {}, "categories": {}}
    for name, tensor in tensors.items():
        head, part = name.split(".")
        heads[head][part] = jnp.asarray(weights.numbers(path, name, tensor))
    return (heads if mesh is None else rules.place(heads, mesh)), described


def describe_guard(folder: Path) -> dict[str, Any]:
    """The content of guard.json: categories, thresholds, and how the guard was asked in training.

    Raises:
        UserError: there is none, or it is not of a guard.
    """
    meta = folder / weights.GUARD_META
    if not meta.is_file():
        raise UserError(f"{folder} has no guard ({weights.GUARD_META}): give what srlhfv guard made")
    described = read_json(meta)
    _check_guard(described, meta)
    return described


def _check_guard(described: dict[str, Any], meta: Path) -> None:
    for name, kind in GUARD_FACTS.items():
        take(described, name, kind, str(meta))
    thresholds, categories = described["thresholds"], described["categories"]
    if not thresholds or not thresholds.keys() <= set(GUARD_PARTS) or not all(0 <= value <= 1 for value in thresholds.values()):
        raise UserError(f"{meta}: thresholds must be probabilities of {' and '.join(GUARD_PARTS)}, got {shown(thresholds)}")
    for name in ("system_prompt", "conversation"):  # guards of before have none
        take({name: ""} | described, name, str, str(meta))
    if described["max_pixels"] < 0:
        raise UserError(f"{meta}: max_pixels must be 0 or more, got {shown(described['max_pixels'])}")
    if len({*categories, *SUMS}) != len(categories) + len(SUMS):
        raise UserError(
            f"{meta}: categories must have names of their own, other than {' and '.join(SUMS)}, got {shown(categories)}"
        )
    _check_meaning(described, PLACE | {"severities": list(SEVERITIES)}, meta)


def _check_meaning(described: dict[str, Any], expected: dict[str, Any], meta: Path) -> None:
    for name, value in expected.items():
        if take(described, name, Any, str(meta)) != value:
            raise UserError(
                f"{meta}: {name} must be {value!r}, got {shown(described[name])}: these heads mean something else here"
            )
