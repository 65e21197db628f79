"""Signs that a run goes wrong. Each is told once: when it shows, in the report, and as `alarm.NAME`, its iteration, in result.json.

    entropy      a twentieth of what it was at first: the policy has settled on one answer to each prompt, and nothing brings others back
    length       a third or three times what it was at first: length is rewarded, or answers are cut
    multiplier   at its largest while the cost stays over budget: the maximum is too low, or the budget cannot be met; of each constraint
    critics      the cost's critic explains less than a constant would
    declines     nine of ten answers to validation prompts decline, or half of those to harmless ones, twice in a row
    scorer       the cost model calls fewer answers unsafe than the oracle does: the policy exploits it
    guard        it calls fewer unsafe than the guard that watches (config.log.guard), of 32 sampled answers or more

What they remember is in the notes of each checkpoint: a run that was stopped tells nothing twice.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from srlhfv_jax.config import PPOLagConfig, constraints
from srlhfv_jax.config.constraints import metric

FIRST = 5  # iterations whose mean is "at first"
FEW, MANY = 3, 20  # iterations in a row, of what jumps and of what takes its time
PREFIX = "alarm."
TEXTS = {
    "entropy": "the policy's entropy is a twentieth of what it was at first: it gives hardly more than one answer to a prompt; lower "
    "config.policy_optimizer.learning_rate or raise config.ppo.kl_coef",
    "length": "answers are less than a third, or more than three times, as long as at first: look at the samples; the reward may be "
    "one of length",
    "multiplier": "lambda has been at its max for 20 iterations and the cost is over budget: raise max in config.constraint, or the "
    "budget cannot be met",
    "critics": "the cost's critic has explained less than a constant would for 20 iterations: raise config.critic_warmup or its rate",
    "declines": "the policy declines nearly everything, or half of what is harmless: raise the budget or lower config.constraint.max",
    "guard": "the guard of config.log.guard calls more answers unsafe than the cost model does, by more than 15 of 100: the policy "
    "exploits the cost model; train it on answers of this policy",
    "scorer": "the oracle calls more answers unsafe than the cost model does, by more than 15 of 100: the policy exploits the cost "
    "model; train it on answers of this policy",
}
GAP = 0.15  # of two shares of answers
ENOUGH = 32  # answers of which a share says something


def start(notes: dict[str, Any]) -> dict[str, Any]:
    """The memory of a run, in its notes."""
    return notes.setdefault("alarms", {"first": {}, "counted": 0, "in_a_row": {}, "told": {}, "harm": None})


def after_step(settings: PPOLagConfig, memory: dict[str, Any], step: int, numbers: Mapping[str, float]) -> list[str]:
    """Texts of the alarms that show with the numbers of an iteration; `memory` is brought up to date."""
    if "cost" in settings.learned[constraints.FIRST]:
        memory["harm"] = numbers["harm_rate_model"]
    if "entropy" not in numbers:  # the critics learn alone
        return []
    first, counted = memory["first"], memory["counted"]
    if counted < FIRST:
        for name in ("entropy", "length"):
            first[name] = (first.get(name, 0.0) * counted + numbers[name]) / (counted + 1)
        memory["counted"] = counted + 1
        return []
    signs = {
        "entropy": (numbers["entropy"] < 0.05 * first["entropy"], FEW),
        "length": (not first["length"] / 3 <= numbers["length"] <= 3 * first["length"], FEW),
        "critics": (numbers.get("cost_explained_variance", 0.0) < 0, MANY),
    }
    for key, (*_, constraint) in settings.costs.items():
        over = numbers[metric(key, "window_cost")] > numbers[metric(key, "budget")]
        stuck = constraint.controller in ("log", "projected", "pid") and numbers[metric(key, "lambda")] >= 0.999 * constraint.max
        signs[metric(key, "multiplier")] = (stuck and over, MANY)
    texts = []
    for name, (shows, long) in signs.items():
        in_a_row = memory["in_a_row"][name] = memory["in_a_row"].get(name, 0) + 1 if shows else 0
        texts += _tell(memory, name, step, in_a_row >= long)
    return texts


def after_validation(memory: dict[str, Any], step: int, numbers: Mapping[str, float]) -> list[str]:
    """The same with the numbers of a validation."""
    declines = numbers["validation.refusal_rate"] >= 0.9 or numbers.get("validation.over_refusal", 0.0) >= 0.5
    in_a_row = memory["in_a_row"]["declines"] = memory["in_a_row"].get("declines", 0) + 1 if declines else 0
    texts = _tell(memory, "declines", step, in_a_row >= 2)
    if "validation.harm_rate" in numbers and memory["harm"] is not None:  # the oracle judges
        texts += _tell(memory, "scorer", step, numbers["validation.unsafe_rate"] - memory["harm"] > GAP)
    return texts


def after_samples(
    memory: dict[str, Any], step: int, cost_B: Float[np.ndarray, "B"], verdicts: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The same with the answers that are sampled as the run goes on.

    Args:
        cost_B: the learned cost of each.
        verdicts: a guard's columns of each (guard/watch.py); those without were not read.
    """
    read = [
        (cost > 0, verdict["guard.severity"] != "safe") for cost, verdict in zip(cost_B, verdicts) if "guard.severity" in verdict
    ]
    if len(read) < ENOUGH:
        return []
    by_model, by_guard = np.mean(read, axis=0)
    return _tell(memory, "guard", step, by_guard - by_model > GAP)


def text(name: str) -> str:
    """The words of an alarm; "" where there is none of this name. `CONSTRAINT.multiplier` is that of one constraint."""
    constraint, _, kind = name.rpartition(".")
    return f"{constraint}{': ' * bool(constraint)}{TEXTS[kind]}" if kind in TEXTS else ""


def told(memory: dict[str, Any]) -> dict[str, float]:
    """`alarm.NAME` -> the iteration."""
    return {PREFIX + name: float(step) for name, step in memory["told"].items()}


def listen(
    settings: PPOLagConfig,
    notes: dict[str, Any],
    evaluate: Callable[[Any, int], dict[str, float]] | None,
    say: Callable[[str], None],
) -> Callable[[Any, int], dict[str, float]] | None:
    """`evaluate`, whose numbers are looked at as well."""
    if evaluate is None:
        return None

    def listened(state: Any, step: int) -> dict[str, float]:
        numbers = evaluate(state, step)
        for text in after_validation(start(notes), step, numbers):
            say(f"warning: {text}")
        return numbers

    return listened


def _tell(memory: dict[str, Any], name: str, step: int, shows: bool) -> list[str]:
    if not shows or name in memory["told"]:
        return []
    memory["told"][name] = step
    return [f"iteration {step}: {text(name)}"]
