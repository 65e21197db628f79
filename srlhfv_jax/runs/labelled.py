"""Labelled rows of each head: printed before step 0, part of result.json, and at least one.

A head without labels costs nothing to train, and what it is exported as says nothing about any answer.
"""

from collections.abc import Mapping, Sequence

from srlhfv_jax.data import collate, guard_rows, loader
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import hosts

FEW = 100  # rows; a direction in thousands of dimensions is a guess with less
REMEDIES = {
    "reward": "no pair says which answer is more helpful (ties do not count): train --config.heads=\"('cost',)\", or srlhfv cost",
    "cost": "no pair says which answer is safer (ties do not count): train --config.heads=\"('reward',)\", or srlhfv reward",
    "cost_sign": "no answer is labelled safe or unsafe, which fixes the zero of the cost: label some, or --config.sign_weight=0",
    "severity_safe": "no question or answer is labelled safe",
    "severity_unsafe": "no question or answer is labelled unsafe",
    "categories": "no question or answer names a category: label some, or --config.category_weight=0",
    "input": "no question is labelled: leave 'input' out of config.parts",
    "output": "no answer is labelled: leave 'output' out of config.parts",
}


def of_pairs(rows: loader.Prepared, heads: Sequence[str], *, sign_weight: float) -> dict[str, int]:
    """Pairs with a strict preference for each head, and pairs with the sign of a cost where that is trained."""
    examples = [row.example for row in rows.rows]
    found = {
        "reward": [example.chosen is not None and not example.helpful_tie for example in examples],
        "cost": [example.safer is not None and not example.safety_tie for example in examples],
        "cost_sign": [any(collate.signs(example, rows.sign)) for example in examples],
    }
    wanted = [*heads, *(["cost_sign"] if "cost" in heads and sign_weight else [])]
    return {name: sum(found[name]) for name in wanted}


def of_guard(rows: loader.Prepared, parts: Sequence[str], *, category_weight: float) -> dict[str, int]:
    """Questions and answers that are safe, that are not, that name a category; and labelled ones of each part that is trained."""
    labels = [rows.labels[row.row] for row in rows.rows]
    every = [one for both in labels for one in both]
    counts = {
        f"severity_{name}": sum(one.exceeds[0] is unsafe for one in every) for name, unsafe in (("safe", False), ("unsafe", True))
    }
    if category_weight:
        counts["categories"] = sum(bool(one.categories) for one in every)
    return counts | {part: sum(both[guard_rows.PARTS.index(part)] != guard_rows.UNKNOWN for both in labels) for part in parts}


def check(path: str, counts: Mapping[str, int]) -> dict[str, float]:
    """Say them, warn below `FEW`; returns them as `labelled.NAME` for result.json.

    Raises:
        UserError: one of them is 0.
    """
    for name, count in counts.items():
        if not count:
            raise UserError(f"{path}: {name} has nothing to learn from: {REMEDIES[name]}")
    hosts.say(f"{path}: labelled rows: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    for name, count in counts.items():
        if count < FEW:
            hosts.say(f"warning: {path}: {name} learns from {count} labelled rows; below {FEW} it says little about others")
    return {f"labelled.{name}": float(count) for name, count in counts.items()}
