"""The vocabulary of name tables: one of our parameter leaves beside the tensors that fill it, for both directions.

    our leaf                                    tensor in the file                          stored as
    text/layers/self_attn/q_proj/kernel         ...layers.{i}.self_attn.q_proj.weight       same (out, in), stacked over i
    text/layers/self_attn/o_proj/kernel         ...layers.{i}.self_attn.o_proj.weight       transposed to (in, out), stacked
    vision/embeddings/patch_embedding/kernel    ...patch_embedding.weight                   (out, C, [frame,] y, x) flattened

The tables themselves are in the files of the families.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from srlhfv_jax.models.config import VLMConfig

SAME, TRANSPOSED, FLATTENED = "same", "transposed", "flattened"

Row = tuple[str, str, str]  # our path within a layer, the rest of the tensor's name, how it is stored


class Leaf(NamedTuple):
    """One of our leaves and the tensors that fill it."""

    path: tuple[str, ...]
    name: str  # a tensor's name, or with "{}" the template of one name per layer
    layers: range | None  # the layers stacked on axis 0
    stored: str  # SAME | TRANSPOSED | FLATTENED

    @property
    def names(self) -> list[str]:
        return [self.name] if self.layers is None else [self.name.format(i) for i in self.layers]


def of_layers(path: tuple[str, ...], prefix: str, layers: range, rows: Iterable[Row]) -> list[Leaf]:
    """The leaves of a stack; `prefix` has "{}" where the number of the layer stands."""
    if not layers:
        return []
    return [Leaf((*path, *ours.split("/")), prefix + theirs, layers, stored) for ours, theirs, stored in rows]


def single(path: str, name: str, stored: str = SAME) -> Leaf:
    """A leaf with one tensor."""
    return Leaf(tuple(path.split("/")), name, None, stored)


def norm(path: str, name: str) -> list[Leaf]:
    """Scale and bias of a layer norm."""
    return [single(f"{path}/scale", f"{name}.weight"), single(f"{path}/bias", f"{name}.bias")]


def rows_of_norms(*pairs: tuple[str, str]) -> list[Row]:
    """Scale and bias of layer norms inside a layer: (our name, their name)."""
    kinds = (("scale", "weight"), ("bias", "bias"))
    return [(f"{ours}/{our}", f"{theirs}.{their}", SAME) for ours, theirs in pairs for our, their in kinds]


def stored_shape(config: VLMConfig, leaf: Leaf, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of each tensor in the file, from the shape of our leaf."""
    layer_shape = shape if leaf.layers is None else shape[1:]
    if leaf.stored == TRANSPOSED:
        return layer_shape[::-1]
    if leaf.stored == FLATTENED:
        c = config.vision
        return (layer_shape[0], c.channels, *([c.frames] if c.frames > 1 else []), c.patch, c.patch)
    return layer_shape


def leaf(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
    """`tree[a][b][c]` for the path (a, b, c)."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """`tree[a][b][c] = value`, making the dicts on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def compressed(found: list[str]) -> list[str]:
    """Lines that differ only in the layer number, as one: `layers.0-31.mlp.up_proj.weight`."""
    layers: dict[str, list[int]] = {}
    for line in found:
        number = re.search(r"(?<=layers\.)\d+", line)
        template = line if number is None else f"{line[: number.start()]}{{}}{line[number.end() :]}"
        layers.setdefault(template, []).extend([] if number is None else [int(number.group())])
    return [template.replace("{}", _ranges(sorted(numbers))) for template, numbers in layers.items()]


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
