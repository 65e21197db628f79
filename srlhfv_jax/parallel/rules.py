"""Sharding rules: a table of (pattern on the parameter's path, PartitionSpec), and the functions that apply it.

The table covers the parameter tree of models/ (docs in models/vlm.py and models/score_heads.py). The same patterns find the moments of
the optimizer, whose paths end in the parameter's path, so that one table places a whole train state. A dimension that an axis
does not divide is left whole: `specs` drops the axis and `table` shows it.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel.mesh import ROWS

Rule = tuple[str, P]
Tree = TypeVar("Tree")

# First match wins. Kernels under "layers" are stacked on axis 0. The first axis of a kernel is the one tensor parallelism splits:
# outputs of q, k, v, gate, up, fc1, inputs of o, down, fc2 (models/layers.py). One rule serves both; `fsdp` takes the other axis.
RULES: tuple[Rule, ...] = (
    (r"(embed/embedding|text/head/kernel)$", P("tensor", "fsdp")),
    (r"layers/.*(q|k|v|o|out|gate|up|down)_proj/kernel$", P(None, "tensor", "fsdp")),
    (r"layers/.*fc[12]/kernel$", P(None, "tensor", "fsdp")),
    (r"layers/qkv/kernel$", P(None, None, "fsdp")),  # q, k and v in one: an axis split evenly would cut across heads of all three
    (r"layers/.*((q|k|v|gate|up)_proj|fc1)/bias$", P(None, "tensor")),
    (r"layers/.*(q|k|v|gate|up)_proj/kernel_scale$", P(None, "tensor")),  # of outputs (models/quantize.py)
    (r"layers/.*(o|down)_proj/kernel_scale$", P()),
    (r"lora_a$", P(None, None, "fsdp")),
    (r"lora_b$", P(None, "fsdp")),
    (r"lora_scale$", P()),
    (r"layers/(self_attn/)?revision$", P()),  # vectors that are added to activations
    (r"projector/linear_[12]/kernel$", P("tensor", "fsdp")),
    (r"projector/linear_1/bias$", P("tensor")),
    (r"projector/newline$", P()),
    (r"/(scale|bias)$", P()),  # norms, and biases of row-parallel kernels
    (r"vision/embeddings/", P()),  # patches, positions, class token: small
    (r"(heads/\w+|reward|cost)/kernel$", P()),  # score heads: one vector each
    (r"(severity|categories)/kernel$", P()),  # the guard's heads
    (r"/\d+x\d+$", P(None, "tensor", "fsdp")),  # Muon's moments: the kernels of all layers that have one shape
    (r"ns_coeffs$", P()),  # its constants
)

# Of the policy while it samples: nothing split over fsdp (rollout/layout.py).
ROLLOUT: tuple[Rule, ...] = tuple((pattern, P(*(axis if axis != "fsdp" else None for axis in spec))) for pattern, spec in RULES)


def specs(shapes: Tree, mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> Tree:
    """The PartitionSpec of every leaf of `shapes` (arrays or ShapeDtypeStructs).

    Scalars (step counters) need no rule.

    Raises:
        UserError: a leaf that no rule matches, or a rule longer than the leaf has dimensions.
    """
    return jax.tree.map_with_path(lambda path, leaf: _spec(path_text(path), leaf.shape, mesh, rules)[0], shapes)


def shardings(shapes: Tree, mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> Tree:
    """As `specs`, bound to the mesh: for jit's in_shardings/out_shardings and for checkpoints."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs(shapes, mesh, rules), is_leaf=lambda leaf: isinstance(leaf, P)
    )


def place(tree: Tree, mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> Tree:
    """Put host arrays, or arrays placed otherwise, on the mesh by the rules."""
    return jax.device_put(tree, shardings(tree, mesh, rules))


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device of the mesh all of it."""
    return NamedSharding(mesh, P())


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Put small things (controller state, step) whole on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def keep_rows(batch: Tree) -> Tree:
    """Inside jit: axis 0 of every array stays split over (data, fsdp) of the mesh of `jax.set_mesh`; without one, nothing.

    Needed where rows were just picked from a larger batch: XLA's partitioner (jaxlib 0.10.2) was seen to order the rows of two
    parts of one expression differently after such a split, on a mesh with two row axes and one row per device: wrong sums. The
    other axes of keys and values, which alone are floats with more than three of them, stay split as they are, over heads.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return batch

    def keep(rows: jax.Array) -> jax.Array:
        kv = rows.ndim > 3 and jnp.issubdtype(rows.dtype, jnp.floating)
        heads = [P.UNCONSTRAINED] * (rows.ndim - 1) if kv else []
        return jax.lax.with_sharding_constraint(rows, P(ROWS, *heads))

    return jax.tree.map(keep, batch)


def abstract(tree: Tree) -> Tree:
    """Shapes, dtypes and shardings of placed arrays, without the arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def table(shapes: Any, mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> str:
    """Shardings as a table, one line per leaf, for the start of a run; an axis dropped because it does not divide is named."""
    lines = []
    for path, leaf in leaves(shapes):
        spec, dropped = _spec(path, leaf.shape, mesh, rules)
        shown = ", ".join("-" if axis is None else str(axis) for axis in (*spec, *(None,) * (len(leaf.shape) - len(spec))))
        note = f"  ({', '.join(dropped)} does not divide)" if dropped else ""
        lines.append((path, "x".join(map(str, leaf.shape)) or "scalar", f"[{shown}]{note}"))
    widths = [max((len(line[column]) for line in lines), default=0) for column in (0, 1)]
    return "\n".join(f"  {path:<{widths[0]}}  {shape:>{widths[1]}}  {spec}" for path, shape, spec in lines)


def summary(shapes: Any, mesh: Mesh, rules: tuple[Rule, ...] = RULES) -> str:
    """A whole tree in one line: parameters, leaves, bytes in all and on each device, and how many axes did not divide."""
    count, size, share, leaf_count, dropped_count = 0, 0, 0.0, 0, 0
    for path, leaf in leaves(shapes):
        spec, dropped = _spec(path, leaf.shape, mesh, rules)
        axes = [axis for part in spec if part is not None for axis in (part if isinstance(part, tuple) else (part,))]
        leaf_size = leaf.size * leaf.dtype.itemsize
        count, size, share = count + leaf.size, size + leaf_size, share + leaf_size / math.prod(mesh.shape[axis] for axis in axes)
        leaf_count, dropped_count = leaf_count + 1, dropped_count + bool(dropped)
    text = f"{count / 1e6:.2f} M parameters in {leaf_count} leaves, {size / 2**20:.1f} MiB"
    if mesh.size > 1:
        text += f", {share / 2**20:.1f} MiB on each device"
    return text + (f"; leaves with an axis that does not divide and stays whole: {dropped_count}" if dropped_count else "")


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of every leaf, the path as "text/layers/q_proj/kernel"."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        yield path_text(path), leaf


def path_text(path: tuple[Any, ...]) -> str:
    """A tree path as "a/b/c": keys of dicts, fields of NamedTuples and indices alike."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh, rules: tuple[Rule, ...]) -> tuple[P, list[str]]:
    """The spec of one leaf, and the axes that were dropped from it."""
    if not shape:
        return P(), []
    spec = next((spec for pattern, spec in rules if re.search(pattern, path)), None)
    if spec is None:
        raise UserError(f"no sharding rule matches the parameter {path} {shape}: add one to parallel/rules.py")
    if len(spec) > len(shape):
        raise UserError(f"the sharding rule {spec} for {path} has more axes than the shape {shape}: correct parallel/rules.py")
    axes, dropped = [], []
    for axis, size in zip(spec, shape):
        fits = axis is None or size % mesh.shape[axis] == 0
        axes.append(axis if fits else None)
        if not fits:
            dropped.append(axis)
    return P(*axes), dropped
