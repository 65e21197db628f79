"""The constraints of a PPO-Lagrangian run: `config.constraint` alone, or those that `config.constraints` lists.

    constraints=(
        dict(name="harm", cost="model", budget=0.1),
        dict(name="over_refusal", cost="answer:declined*3", where="harmful=no", budget=0.15),
    )

On a command line: --config.constraints.over_refusal.budget=0.02. What an item leaves out is as in `config.constraint`. Numbers of the first are logged under their plain names (`lambda`, `cost`), those
of the others behind their names (`over_refusal.lambda`).
"""

import ast
import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from ml_collections import ConfigDict

from srlhfv_jax.config import terms
from srlhfv_jax.config.ranges import CountOrOff, Number, OneOf, Range, Share, Weight
from srlhfv_jax.errors import UserError, nearest, shown
from srlhfv_jax.parsing import check_key, checked, flattened

FIRST = "cost"  # the first constraint's key in a run: its score, its head, its critic
OWN = ("name", "cost", "where")  # keys of an item beside those of ConstraintConfig
TAKEN = ("reward", FIRST, "lambda", "validation", "best_feasible", "alarm", "policy", "reference", "critic", "scorer")
NAME = re.compile(r"[a-z][a-z0-9_]+")
FLAG = re.compile(r"--?config\.(?P<setting>(\w+\.)?constraints)\.(?P<name>\w+)\.(?P<key>\w+)=(?P<value>.*)", re.DOTALL)
READS = {  # field -> the controllers that read it; every controller reads the others
    "kp": ("pid",),
    "kd": ("pid",),
    "smoothing": ("pid",),
    "learning_rate": ("log", "projected", "pid"),
    "error": ("log", "projected", "pid"),
    "delay": ("log", "projected", "pid", "crpo"),
    "init": ("fixed", "log", "projected", "pid", "crpo"),
    "max": ("fixed", "log", "projected", "pid", "crpo", "p3o"),
    "tolerance": ("crpo",),
}


@dataclasses.dataclass(frozen=True)
class ConstraintConfig:
    """E[C] <= budget and the multiplier that enforces it."""

    kind: str  # "mean": C; "rectified": max(0, C); "probability": 1[C > 0]
    # of "probability": P(unsafe | C) of `srlhfv calibrate` in the place of 1[C > 0], so that the budget is a share by annotators' labels
    calibrated: bool
    # of "probability": above 0, 1 / (1 + exp(-C / softness)) in the place of 1[C > 0], so that an answer near the border counts as half
    softness: Weight
    budget: Number  # d, in units of `kind`
    # above 0: the controller, and the choice of the best feasible policy, go by an upper bound of E[f(C)] of this confidence
    confidence: Annotated[float, Range(0, 0.9999)]
    # J - d, or (J - d) / (J + d): between -1 and 1 in all units, as far below 0 at a tenth of the budget as above it at ten times it
    error: Annotated[str, OneOf("difference", "ratio")]
    controller: str  # "none" (plain PPO), "fixed" (reward shaping), "log", "projected", "pid", "crpo", "p3o"
    init: Weight  # lambda at the start
    max: Weight  # largest lambda; of "crpo": lambda while the cost is too high; of "p3o": kappa
    learning_rate: Weight  # of "log" and "projected"; Ki of "pid"
    kp: Weight  # pid
    kd: Weight  # pid
    smoothing: Share  # pid: moving average of the P and D terms
    window: Annotated[int, Range(1, 10**7)]  # episode costs averaged for the update
    delay: CountOrOff  # iterations before the first update
    tolerance: Weight  # crpo: the cost counts as too high so far above the budget


class Condition(NamedTuple):
    """Rows that a constraint is about: those whose column has a value."""

    column: str
    value: str


class Constraint(NamedTuple):
    """One constraint of a run."""

    name: str
    place: str  # in messages: the setting of its cost
    terms: tuple[terms.Term, ...]  # what its cost is the sum of
    where: Condition | None  # None: of all rows
    settings: ConstraintConfig


def read(items: Sequence[Mapping[str, Any]], common: ConstraintConfig, cost_fn: str) -> dict[str, Constraint]:
    """Key -> constraint, in order. The first one's key is FIRST, that of the others their name.

    Args:
        items: those of `config.constraints`; none: `common` is the only one.
        common: values that an item leaves out.
        cost_fn: terms of the cost where there are no items.

    Raises:
        UserError: an item with a wrong name, key or value.
    """
    if not items:
        place = "config.cost_fn"
        return {FIRST: Constraint(FIRST, place, terms.parse(cost_fn, place), None, common)}
    costs: dict[str, Constraint] = {}
    for number, item in enumerate(items):
        constraint = _read(item, common, f"config.constraints[{number}]")
        if constraint.name in [one.name for one in costs.values()]:
            raise UserError(f"config.constraints has two of the name {constraint.name}: each is logged under its own")
        costs[constraint.name if costs else FIRST] = constraint
    return costs


def collected(config: ConfigDict, words: Sequence[str]) -> list[str]:
    """--config.constraints.NAME.KEY=VALUE, as often as there are, -> one --config.constraints with the items of `config` so changed.

    A name that the config does not have adds an item.
    """
    arguments: list[str] = []
    items: dict[str, dict[str, dict[str, Any]]] = {}  # setting -> name -> item
    for word in words:
        match = FLAG.fullmatch(word)
        if match is None:
            arguments.append(word)
            continue
        setting, name, key, text = match["setting"], match["name"], match["key"], match["value"]
        check_key(config, setting)
        if setting not in items:
            listed = [item for item in flattened(config)[setting] if isinstance(item, dict) and "name" in item]
            items[setting] = {item["name"]: dict(item) for item in listed}
        items[setting].setdefault(name, {"name": name})[key] = text if key in OWN else _value(text)
    return [*arguments, *(f"--config.{setting}={tuple(named.values())!r}" for setting, named in items.items())]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def metric(key: str, name: str) -> str:
    """A number of a constraint, as it is logged."""
    return name if key == FIRST else f"{key}.{name}"


def unread(constraint: ConstraintConfig) -> list[str]:
    """Fields that its controller does not read."""
    return [field for field, controllers in READS.items() if constraint.controller not in controllers]


def _read(item: Mapping[str, Any], common: ConstraintConfig, path: str) -> Constraint:
    hints = typing.get_type_hints(ConstraintConfig, include_extras=True)
    for key in item:
        if key not in hints and key not in OWN:
            raise UserError(f"{path} has the key {shown(key)}; {nearest(str(key), (*OWN, *hints))}")
    for key in OWN[:2]:
        if key not in item:
            raise UserError(f"{path} has no {key}: expected dict(name='harm', cost='model', kind='probability', budget=0.05)")
    name, cost, where = (checked(str, item.get(key, ""), f"{path}.{key}") for key in OWN)
    if (
        not NAME.fullmatch(name)
        or name.endswith("_critic")
        or (name in TAKEN and (name != FIRST or path != "config.constraints[0]"))
    ):
        raise UserError(
            f"{path}.name is {shown(name)}: expected two or more of a-z, 0-9 and _, such as over_refusal, but none of {', '.join(TAKEN)} and none that ends in _critic"
        )
    if not cost:
        raise UserError(f"{path}.cost is empty: expected 'model', 'answer:length', 'answer:declined' or FILE.py:NAME")
    given = {key: checked(hints[key], value, f"{path}.{key}") for key, value in item.items() if key in hints}
    settings = dataclasses.replace(common, **given)
    ignored = next((key for key in given if key in unread(settings)), None)
    if ignored:
        raise UserError(f"{path}.{ignored} would be ignored: its controller is {settings.controller!r}; leave it out")
    return Constraint(name, f"{path}.cost", terms.parse(cost, f"{path}.cost"), _condition(where, path), settings)


def _condition(text: str, path: str) -> Condition | None:
    column, equals, value = (part.strip() for part in text.partition("="))
    if not text:
        return None
    if not equals or not column or not value:
        raise UserError(
            f"{path}.where is {shown(text)}: expected COLUMN=VALUE such as 'harmful=no', of the rows that the constraint is about"
        )
    return Condition(column, value)
