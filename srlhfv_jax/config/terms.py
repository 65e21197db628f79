"""Terms that a reward or a cost is the sum of, as `config.reward_fn` and `config.cost_fn` list them.

    FILE.py:NAME            a function of a Python file
    NAME                    one that `srlhfv_jax.ppo_lag` was given
    model                   the head of the learned scorer
    model:cost              its cost head as a part of the reward, with a weight below 0 if harm is to cost reward
    guard:unsafe            a head of the guard in `config.guard`: log-odds that the answer is unsafe; or of a category of harm
    answer:length           about the answer itself, as answer:declined and answer:format (functions/answers.py)
    FILE.py:NAME*0.5        the same with a weight

Several are separated by commas. An empty list is the learned head alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from srlhfv_jax.errors import UserError, shown

MODEL, GUARD = "model", "guard"
SHAPE = "expected FILE.py:NAME, or several separated by commas, each with a weight if it is not 1: rewards.py:length*0.5,model"


class Term(NamedTuple):
    """One term of a sum."""

    name: str  # of a function, or MODEL
    file: str  # "": a function that Python was given, or the model
    weight: float

    @property
    def is_learned(self) -> bool:
        """Whether a head of a model gives it, and no function."""
        return self.file in (GUARD, MODEL) or (self.name == MODEL and not self.file)


def role(score: str, term: Term) -> str:
    """The head that gives a learned term of a score, as a role of a run (ppo_lag/roles.py)."""
    if term.file:
        return f"guard_{term.name}" if term.file == GUARD else term.name
    return "reward" if score == "reward" else "cost"


def parse(text: str, path: str, others: Sequence[str] = ()) -> tuple[Term, ...]:
    """The terms of a setting.

    Args:
        path: of the setting, for messages.
        others: heads of the scorer beside the score's own one that may be terms, as model:HEAD.

    Raises:
        UserError: an item that is none, a name twice, or no weight but 0.
    """
    terms = tuple(_term(item, path, others) for item in text.split(",")) if text else (Term(MODEL, "", 1.0),)
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path} names {name} twice: give each function a name of its own, under which it is logged")
    if not any(term.weight for term in terms):
        raise UserError(f"{path} is {shown(text)}: all weights are 0, and nothing would be learned")
    return terms


def write(terms: tuple[Term, ...]) -> str:
    """The text that `parse` reads as these terms."""
    return ",".join(f"{term.file}{':' * bool(term.file)}{term.name}*{term.weight!r}" for term in terms)


def _term(item: str, path: str, others: Sequence[str]) -> Term:
    place, star, factor = item.strip().rpartition("*")
    file, _, name = (place if star else factor).strip().rpartition(":")
    name, file = name.strip(), file.strip()
    if not name.isidentifier() or (name == MODEL and file):
        raise UserError(f"{path} has the item {shown(item)}: {SHAPE}")
    if file == MODEL and name not in others:
        known = f"other heads are {', '.join(f'{MODEL}:{other}' for other in others)}" if others else "it takes no other"
        raise UserError(f"{path} has the item {shown(item)}: its own head is 'model', and {known}")
    try:
        weight = float(factor) if star else 1.0
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UserError(f"{path} has the item {shown(item)}: its weight {shown(factor)} is no number; {SHAPE}")
    if name == MODEL and not weight:
        raise UserError(f"{path} has the item {shown(item)}: leave the model out where it does not count")
    return Term(name, file, weight)
