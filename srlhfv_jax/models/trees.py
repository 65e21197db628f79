"""Parameter trees, `{"backbone": params}` or `{"backbone": params, "heads": {name: {"kernel"}}}`; where several share one frozen backbone
a tree has an "adapter" in its place, and `with_backbone` lays that over the backbone of the tree called BASE.
"""

from typing import Mapping

from srlhfv_jax.models import lora

BASE = "base"


def with_backbone(base: dict | None, tree: dict) -> dict:
    """A tree with its backbone: its own, or `base` under its adapter. Copies nothing."""
    if "adapter" not in tree:
        return tree
    rest = {name: part for name, part in tree.items() if name != "adapter"}
    return rest | {"backbone": lora.overlay(base, tree["adapter"])}


def complete(trees: Mapping[str, dict]) -> dict[str, dict]:
    """Every tree but BASE, whole."""
    base = trees[BASE]["backbone"] if BASE in trees else None
    return {name: with_backbone(base, tree) for name, tree in trees.items() if name != BASE}
