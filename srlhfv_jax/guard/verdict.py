"""What a guard says of one prompt or one answer, and what the filter-and-regenerate loop records of it. Plain data, no arrays."""

from collections.abc import Mapping
from typing import NamedTuple


class Verdict(NamedTuple):
    """Of one (pictures, question), or of one (pictures, question, answer)."""

    safe: bool  # scores["unsafe"] is at or below the guard's calibrated threshold
    severity: str  # one of data/labels.SEVERITIES; "safe" exactly where `safe` is true
    categories: tuple[str, ...]  # names of the taxonomy whose probability is above their threshold, likeliest first
    scores: Mapping[str, float]  # "unsafe": P(severity > safe); "severity": expected level 0..3; category name: probability


class Round(NamedTuple):
    """One answer of a policy, and what the guard said of it."""

    number: int  # 0: the first answer; k: after k regenerations
    answer: str
    verdict: Verdict


class Guarded(NamedTuple):
    """What became of one prompt."""

    answer: str  # what is shown: a policy's answer, or the refusal text
    verdict: (
        Verdict | None
    )  # of the answer that was kept, shown or not; None: the question was blocked, or answers are not checked
    blocked: bool  # the refusal text is shown in its place
    rounds: tuple[Round, ...]  # every answer, in order; empty where the question was blocked
    input: Verdict | None = None  # of the question; None: it was not checked
