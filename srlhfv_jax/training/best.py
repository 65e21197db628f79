"""The best evaluation of a run by one metric, and when to wait no longer for a better one. Decisions alone: the loop carries them out."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from srlhfv_jax.config.held_out import METRICS, Better
from srlhfv_jax.errors import UserError


class Rule(NamedTuple):
    """Choice of the best evaluation."""

    metric: str  # among the numbers of an evaluation
    better: Better
    patience: int  # evaluations in a row without a better one after which the run ends; 0 = it goes to its last step
    rows: tuple[str, ...] = ()  # that are evaluated: of other ones the best is another


class Best(NamedTuple):
    """The best evaluation so far."""

    step: int = 0  # 0: none yet
    value: float = math.nan
    later: int = 0  # evaluations after it, none of them better


def value_of(rule: Rule, numbers: Mapping[str, float]) -> float:
    """The metric of an evaluation.

    Raises:
        UserError: it is not there, since the rows lack its labels.
    """
    if rule.metric not in numbers:
        named = ", ".join(name for name in METRICS if name in numbers)
        raise UserError(f"config.keep_best={rule.metric} cannot be measured on these held-out rows: expected one of {named}")
    return numbers[rule.metric]


def improves(rule: Rule, best: Best, value: float) -> bool:
    """Whether an evaluation is better than all before. An equal one is not; nor is one that is no finite number."""
    if not math.isfinite(value):
        return False
    return best.step == 0 or (value < best.value if rule.better == "lower" else value > best.value)


def after(best: Best, step: int, value: float, better: bool) -> Best:
    """The best after the evaluation of `step`, which is `better` or not."""
    return Best(step, value) if better else best._replace(later=best.later + 1)


def exhausted(rule: Rule, best: Best) -> bool:
    """Whether the run has waited long enough."""
    return 0 < rule.patience <= best.later


def to_note(rule: Rule, best: Best) -> dict[str, Any]:
    """As a checkpoint keeps it, in JSON."""
    value = best.value if best.step else None
    return {"metric": rule.metric, "rows": list(rule.rows), "step": best.step, "value": value, "later": best.later}


def from_note(rule: Rule, note: Mapping[str, Any] | None) -> Best | None:
    """The best that a checkpoint keeps; None: by another metric or on other rows, or there is none."""
    if note is None or (note["metric"], note["rows"]) != (rule.metric, list(rule.rows)):
        return None
    return Best(note["step"], note["value"] if note["step"] else math.nan, note["later"])
