"""The policies that a workdir compares: their names in the user's order, their numbers as a table, their place in the plane.

Numbers of the embedded task are its oracle's, and called helpfulness and cost; others are scores of learned models, and called so.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from srlhfv_jax.report import page
from srlhfv_jax.report.labels import Point
from srlhfv_jax.report.workdir import Workdir

Numbers = Mapping[str, float]


class Judge(NamedTuple):
    """Keys of result.json for the two axes, and their labels."""

    merit: str  # key
    cost: str  # key
    budget: str  # key
    merit_name: str
    cost_name: str
    columns: tuple[tuple[str, str], ...]  # (key, heading) of the table
    harm: tuple[str, str]  # (key, name) of the share that is unsafe
    more: str  # one policy ... another
    less: str
    same: str


ORACLE = Judge(
    "helpful",
    "cost",
    "oracle_budget",
    "helpfulness",
    "true cost",
    (
        ("helpful", "helpful"),
        ("helpful_benign", "helpful (harmless)"),
        ("cost", "cost"),
        ("harm_rate", "harm rate"),
        ("over_refusal", "over-refusal"),
        ("evasion_rate", "evasion"),
        ("safe_completion", "safe completion"),
        ("named_right", "named right"),
        ("length", "length"),
    ),
    ("harm_rate", "harm rate"),
    "is more helpful than",
    "is less helpful than",
    "is as helpful as",
)
MODELS = Judge(
    "model_reward",
    "model_cost",
    "controller_budget",
    "learned reward",
    "learned cost",
    (
        ("model_reward", "learned reward"),
        ("model_cost", "learned cost"),
        ("model_unsafe_rate", "cost > 0"),
        ("model_cost_rectified", "mean max(0, cost)"),
        ("model_cost_p95", "cost, 95 %"),
        ("length", "length"),
        ("ended", "ended"),
    ),
    ("model_unsafe_rate", "share of unsafe answers"),
    "has a higher learned reward than",
    "has a lower learned reward than",
    "has the learned reward of",
)
NOT_POLICIES = ("validation", "best_feasible")  # numbers of one run with the same endings
KNOWN = ("sft", "ppo", "ppo_lag")  # the order where no file tells it
FIXED = "fixed_lambda."
STEP = re.compile(r"(.+?)\.([0-9]+(?:\.[0-9]+)?)")


class Policies(NamedTuple):
    """Names found in result.json, and who judged them."""

    names: tuple[str, ...]
    variants: tuple[str, ...]  # "sft.greedy" where "sft" is a policy too
    judge: Judge
    methods: tuple[str, ...] = ()  # what `quickstart --compare` trained beside them: they are timed
    steps: tuple[tuple[str, str, float], ...] = ()  # (CURVE.NUMBER, CURVE, NUMBER): one thing with several values of a number

    @property
    def main(self) -> tuple[str, ...]:
        """Without the fixed multipliers of a sweep."""
        return tuple(name for name in self.names if not name.startswith(FIXED))


def numeric(result: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a result.json."""
    return {
        key: float(value)
        for key, value in result.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def find_policies(numbers: Numbers, order: Sequence[str] = ()) -> Policies:
    """A policy is what has both axes: NAME.helpful and NAME.cost (oracle), or NAME.model_reward and NAME.model_cost.

    Args:
        order: names as the user gave them; others come after, those of the quickstart first.
    """
    for judge in (ORACLE, MODELS):
        names = [key.removesuffix(f".{judge.merit}") for key in numbers if key.endswith(f".{judge.merit}")]
        names = [name for name in names if f"{name}.{judge.cost}" in numbers and name not in NOT_POLICIES]
        if names:
            ranks = {name: place for place, name in reversed([*enumerate((*order, *KNOWN))])}
            last = len(ranks) + len(order)
            names.sort(key=lambda name: (ranks.get(name, ranks.get(name.partition(".")[0], last)), name))
            steps = [
                (name, match[1], float(match[2]))
                for name in names
                if (match := STEP.fullmatch(name)) and name not in order and not name.startswith(FIXED)
            ]
            names = [name for name in names if name not in {name for name, _, _ in steps}]
            variants = [name for name in names if any(name.startswith(f"{other}.") for other in names)]
            policies = [name for name in names if name not in variants]
            methods = tuple(name for name in policies if f"{name}.seconds" in numbers and name not in KNOWN)
            return Policies(
                tuple(name for name in policies if name not in methods),
                tuple(variants),
                judge,
                methods,
                tuple(sorted(steps, key=lambda step: step[1:])),
            )
    return Policies((), (), ORACLE)


def of(work: Workdir) -> Policies:
    """The policies of a workdir."""
    return find_policies(numeric(work.result), work.order)


def points(numbers: Numbers, names: Sequence[tuple[str, str]], judge: Judge) -> list[Point]:
    """Places in the plane. `names`: (policy, what it is called) of each."""
    return [
        Point(
            label,
            numbers[f"{name}.{judge.cost}"],
            numbers[f"{name}.{judge.merit}"],
            numbers.get(f"{name}.{judge.cost}_se", 0.0),
            numbers.get(f"{name}.{judge.merit}_se", 0.0),
        )
        for name, label in names
    ]


def in_words(places: Sequence[Point], judge: Judge) -> str:
    """The same as text, for those who cannot see the picture."""
    return "; ".join(
        f"{point.name}: {judge.cost_name} {point.cost:.2f}, {judge.merit_name} {point.helpful:.2f}" for point in places
    )


def table(numbers: Numbers, names: Sequence[tuple[str, str]], columns: Sequence[tuple[str, str]], caption: str = "") -> str:
    """HTML of the numbers of policies.

    Args:
        names: (policy, what it is called) of each row.
        columns: (key, heading); those that no policy has are left out.
    """
    shown = [(key, title) for key, title in columns if any(f"{name}.{key}" in numbers for name, _ in names)]
    rows = [(page.escape(label), *(_with_error(numbers, f"{name}.{key}") for key, _ in shown)) for name, label in names]
    return page.table(("policy", *(title for _, title in shown)), rows, numbers=True, caption=caption)


def _with_error(numbers: Numbers, key: str) -> str:
    if key not in numbers:
        return "–"
    error = numbers.get(f"{key}_se")
    return f"{numbers[key]:.2f}" + (f'<span class="error">± {error:.2f}</span>' if error is not None else "")
