"""A guard's verdict on one question or answer, and the record of the filter-and-regenerate loop. Plain data, no arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class GuardVerdict(NamedTuple):
    """The judgement of one (pictures, question), or of one (pictures, question, answer)."""

    safe: bool  # scores["unsafe"] is at or below the guard's calibrated threshold
    severity: str  # one of data.taxonomies.SEVERITIES; "safe" exactly where `safe` is true
    categories: tuple[str, ...]  # names of the taxonomy whose probability is above their threshold, likeliest first
    scores: Mapping[str, float]  # "unsafe": P(severity > safe); "severity": expected level 0..3; category name: probability


class Round(NamedTuple):
    """One answer of a policy, and the verdict on it."""

    number: int  # 0: the first answer; k: after k regenerations
    answer: str
    verdict: GuardVerdict


class Guarded(NamedTuple):
    """The outcome for one prompt."""

    answer: str  # the text that is shown: a policy's answer, or the refusal text
    # On the policy's answer, whether it is shown or not; None: the question was blocked, or answers are not checked.
    verdict: GuardVerdict | None
    blocked: bool  # the refusal text is shown in its place
    rounds: tuple[Round, ...]  # every answer, in order; empty where the question was blocked
    input: GuardVerdict | None = None  # on the question; None: it was not checked


def verdict_json(verdict: GuardVerdict | None) -> dict[str, Any] | None:
    """{"safe", "severity", "categories", "scores"}."""
    if verdict is None:
        return None
    return verdict._asdict() | {
        "categories": list(verdict.categories),
        "scores": {name: float(score) for name, score in verdict.scores.items()},
    }


def guarded_json(guarded: Guarded) -> dict[str, Any]:
    """{"answer", "blocked", "verdict", "input", "rounds": [{"number", "answer", "verdict"}, ...]}."""
    return {
        "answer": guarded.answer,
        "blocked": guarded.blocked,
        "verdict": verdict_json(guarded.verdict),
        "input": verdict_json(guarded.input),
        "rounds": [one._asdict() | {"verdict": verdict_json(one.verdict)} for one in guarded.rounds],
    }
