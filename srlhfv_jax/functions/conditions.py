"""The rows that a constraint is about: those whose column has the value that `where` of `config.constraints` names."""

import numpy as np
from jaxtyping import Bool

from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.config.constraints import Condition
from srlhfv_jax.data import labels
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.loader import Prepared
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError, nearest, shown
from srlhfv_jax.parallel import hosts


def rows(condition: Condition, prompts: Prepared) -> Bool[np.ndarray, "E"]:
    """Whether it holds, by the number of the example."""
    holds = np.zeros(len(prompts.examples), bool)
    for row in prompts.rows:
        holds[row.row] = _same(_columns(row.example).get(condition.column), condition.value)
    return holds


def check(settings: PPOLagConfig, prompts: dict[str, Prepared]) -> None:
    """Say how many prompts each constraint is about.

    Args:
        prompts: by the setting that names them.

    Raises:
        UserError: a prompt has no such column, or it holds for none.
    """
    for constraint in settings.costs.values():
        if constraint.where is None:
            continue
        column, value = constraint.where
        for setting, some in prompts.items():
            cells = [_columns(row.example) for row in some.rows]
            known = {name: None for row in cells for name in row}
            missing = sum(column not in row for row in cells)
            count, about = len(some.rows), int(rows(constraint.where, some).sum())
            if missing:
                hint = nearest(column, known) or "they have no further columns"
                raise UserError(
                    f"config.constraints: {constraint.name}: {missing} of {count} rows of {setting} have no {shown(column)}; {hint}"
                )
            if not about:
                values = sorted({row[column] for row in cells})[:5]
                raise UserError(
                    f"config.constraints: {constraint.name} is about rows with {column}={value}, and {setting} has none: it has "
                    f"{', '.join(map(shown, values))}"
                )
            hosts.say(f"ppo_lag: {constraint.name} is about {about} of {count} rows of {setting} ({column}={value})")


def _columns(example: Example) -> dict[str, str]:
    """The columns of a row by which it can be chosen: those that no reader uses, and the label of its question."""
    label = {} if example.harmful is None else {"harmful": "yes" if example.harmful else "no"}
    return {**example.meta, **label}


def _same(value: str | None, wanted: str) -> bool:
    """Whether they are the same text, or mean the same as labels: no, False and 0."""
    return value is not None and (value == wanted or (_flag(value) is not None and _flag(value) == _flag(wanted)))


def _flag(value: str) -> bool | None:
    try:
        return labels.flag({"value": value}, "value")
    except Unusable:
        return None
