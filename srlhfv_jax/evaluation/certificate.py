"""A certificate: an upper confidence bound of E[f(C)] beside a budget. Arrays in, numbers and one sentence out.

The bound that decides is named before an answer is seen (`Claim.method`); the others stand beside it. It is the safety test of
HC-RLHF (arXiv 2506.08266), with bounds that hold for every sample size.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from srlhfv_jax.config import choose
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import bounds
from srlhfv_jax.evaluation.bounds import UNIT, Interval

MEAN, RECTIFIED, PROBABILITY = "mean", "rectified", "probability"
KINDS = (MEAN, RECTIFIED, PROBABILITY)
POWERED = "prediction_powered"
METHODS = (*bounds.SAMPLE, POWERED)
LEAST = 2  # prompts, or labels


class Claim(NamedTuple):
    """E[f(C)] <= budget, to be shown with this confidence."""

    kind: str  # f, as config.constraint.kind: "mean": C; "rectified": max(0, C); "probability": 1[C > 0]
    budget: float
    confidence: float
    interval: Interval  # of f(C)
    clip: bool  # values above it are cut, and the claim is about what is left of them
    method: str  # of METHODS: the bound that decides; "": by what there is
    graded: bool = False  # of "probability": values lie between 0 and 1, as a calibrated scorer gives them

    @property
    def has_events(self) -> bool:
        """Whether every value is 0 or 1."""
        return self.kind == PROBABILITY and not self.graded


class Labels(NamedTuple):
    """f(C) of some answers by people, or by a judge that stands for them."""

    places: tuple[int, ...]  # of the answers, in their order
    values: Float[np.ndarray, "n"]


class Certificate(NamedTuple):
    """The answer."""

    passed: bool
    sentence: str
    numbers: dict[str, float]  # flat


def claim(
    kind: str, budget: float, confidence: float, limits: Sequence[str], *, clip: bool, method: str, graded: bool = False
) -> Claim:
    """A claim from the words of a command line.

    Args:
        limits: the least and the largest f(C), as text; (): they are known (0 and 1) or missing.
        graded: as in Claim.

    Raises:
        UserError: a budget that the statistic cannot be held under, or always is; a mean without limits, or with odd ones.
    """
    choose(kind, "--kind", *KINDS)
    choose(method, "--method", "", *METHODS)
    if not 0 < confidence < 1:
        raise UserError(f"--confidence must lie between 0 and 1, such as 0.95, got {confidence}")
    if kind == PROBABILITY:
        if limits:
            raise UserError("--range is for the kinds mean and rectified: a probability lies between 0 and 1")
        interval = UNIT
    else:
        interval = _interval(kind, limits)
    if method == bounds.CLOPPER_PEARSON and (kind != PROBABILITY or graded):
        raise UserError(
            "--method=clopper_pearson is for values of 0 and 1, of --kind=probability that is not calibrated; try betting"
        )
    if not interval.low < budget < interval.high:
        raise UserError(
            f"--budget must lie between {interval.low:g} and {interval.high:g}, which {kind} can reach, got {budget:g}: no sample could "
            "decide it"
        )
    return Claim(kind, budget, confidence, interval, clip, method, graded)


def statistic(claim: Claim, cost_B: Float[np.ndarray, "B"], origin: str) -> Float[np.ndarray, "B"]:
    """f(C) of costs, in the claim's interval. What lies below it is raised to it, which only raises the mean.

    Raises:
        UserError: a value above the interval, unless the claim clips; `origin` names who gave it.
    """
    if claim.kind == PROBABILITY:
        return (cost_B > 0).astype(np.float64)
    value_B = np.maximum(cost_B.astype(np.float64), 0.0) if claim.kind == RECTIFIED else cost_B.astype(np.float64)
    low, high = claim.interval
    if value_B.max(initial=low) > high and not claim.clip:
        row = int(np.argmax(value_B))
        raise UserError(
            f"{origin} gives answer {row} a cost of {value_B[row]:.6g}, above --range={low:g},{high:g}: no bound holds for values outside; "
            "give a range that holds for every answer, or --clip, which certifies the mean of the clipped cost"
        )
    return np.clip(value_B, low, high)


def certify(claim: Claim, value_B: Float[np.ndarray, "B"] | None, labels: Labels | None) -> Certificate:
    """The certificate from f(C) of every answer by a scorer or guard, from labels of some, or from both.

    Raises:
        UserError: fewer than two of what the bound is of, labels that do not come first, or a method without what it needs.
    """
    if labels is not None:
        _check_labels(labels)
    if value_B is not None and len(value_B) < LEAST:
        raise UserError(f"a certificate needs at least {LEAST} prompts, got {len(value_B)}: give more")
    method = claim.method or _usual(claim, value_B, labels)
    if method == POWERED and (value_B is None or labels is None):
        raise UserError(
            f"--method={POWERED} corrects scores by labels: give --labels, and --scorer or --guard, or another method"
        )
    error = 1 - claim.confidence
    sample_B = value_B if labels is None else labels.values
    numbers = {f"bound.{name}": bounds.upper(name, sample_B, error, claim.interval) for name in _possible(claim)}
    mean = float(sample_B.mean())
    if value_B is not None and labels is not None:
        corrected = _powered(claim, value_B, labels)
        numbers |= {f"bound.{POWERED}": corrected.upper, "bias": corrected.bias, "scored": float(value_B.mean())}
        mean = corrected.mean if method == POWERED else mean
    upper = numbers[f"bound.{method}"]
    passed = upper <= claim.budget
    numbers |= {"mean": mean, "upper": upper, "budget": claim.budget, "confidence": claim.confidence, "passed": float(passed)}
    numbers["prompts"] = float(len(value_B) if value_B is not None else len(labels.values))
    numbers["labels"] = float(len(labels.values)) if labels is not None else 0.0
    more = {} if passed else _missing(claim, method, mean, value_B, labels)
    said = _sentence(claim, method, numbers, more)
    return Certificate(passed, said, numbers | {name: float(count) for name, count in more.items()})


def _interval(kind: str, limits: Sequence[str]) -> Interval:
    try:
        low, high = map(float, limits)
    except ValueError:
        raise UserError(
            f"--kind={kind} needs --range=LOW,HIGH, two numbers between which f(C) of every answer lies: no bound holds without, "
            f"got {','.join(limits)!r}"
        ) from None
    if not (np.isfinite([low, high]).all() and low < high):
        raise UserError(f"--range must be two finite numbers, the smaller one first, got {','.join(limits)}")
    if kind == RECTIFIED and high <= 0:
        raise UserError(f"--range={low:g},{high:g}: max(0, C) is 0 or more: give a range that ends above 0")
    return Interval(max(low, 0.0) if kind == RECTIFIED else low, high)


def _possible(claim: Claim) -> tuple[str, ...]:
    """Bounds of one sample that hold for these values."""
    return tuple(name for name in bounds.SAMPLE if name != bounds.CLOPPER_PEARSON or claim.has_events)


def _usual(claim: Claim, value_B: np.ndarray | None, labels: Labels | None) -> str:
    """The narrowest bound, by what there is and not by what it says."""
    if value_B is not None and labels is not None:
        return POWERED
    return bounds.CLOPPER_PEARSON if claim.has_events else bounds.BETTING


def _check_labels(labels: Labels) -> None:
    if len(labels.values) < LEAST:
        raise UserError(f"a certificate needs at least {LEAST} labels, got {len(labels.values)}: label more answers")
    first = next((place for place, given in enumerate(labels.places) if place != given), None)
    if first is not None:
        raise UserError(
            f"line {first + 1} of answers.jsonl has no label and later ones have: label from the first line on, without leaving any out "
            "(which answers are labelled must not depend on what they say)"
        )


def _powered(claim: Claim, value_B: np.ndarray, labels: Labels) -> bounds.Corrected:
    scores_n, error = value_B[list(labels.places)], 1 - claim.confidence
    return bounds.prediction_powered(value_B, labels.values, scores_n, error, claim.interval, claim.interval)


def _missing(claim: Claim, method: str, mean: float, value_B: np.ndarray | None, labels: Labels | None) -> dict[str, int]:
    """Labels or prompts that would do beside these, if they looked like those at hand; {}: no number would."""
    if mean >= claim.budget:
        return {}
    error = 1 - claim.confidence
    if method != POWERED:
        sample_B, name = (value_B, "more_prompts") if labels is None else (labels.values, "more_labels")
        return _more(
            name, lambda count: bounds.upper(method, bounds.repeated(sample_B, count), error, claim.interval), sample_B, claim
        )
    pairs = np.stack([labels.values, value_B[list(labels.places)]], axis=1)

    def corrected(labelled: int, prompts: int) -> float:
        labels_n, scores_n = pairs[np.random.default_rng(0).permutation(np.resize(np.arange(len(pairs)), labelled))].T
        score_B = bounds.repeated(value_B, prompts)
        return bounds.prediction_powered(score_B, labels_n, scores_n, error, claim.interval, claim.interval).upper

    count, answers = len(pairs), len(value_B)
    more = _more("more_labels", lambda labelled: corrected(labelled, answers), labels.values, claim, answers)
    if more:
        return more
    most = bounds.MOST * count // answers
    more = _more("more_labels", lambda labelled: corrected(labelled, answers * labelled // count), labels.values, claim, most)
    return more | ({"more_prompts": answers * more["more_labels"] // count} if more else {})


def _more(
    name: str, bound: Callable[[int], float], sample_B: np.ndarray, claim: Claim, most: int = bounds.MOST
) -> dict[str, int]:
    needed = bounds.sample_needed(bound, len(sample_B), claim.budget, most)
    return {} if needed is None else {name: needed - len(sample_B)}


def _sentence(claim: Claim, method: str, numbers: dict[str, float], more: dict[str, int]) -> str:
    who = "labels" if numbers["labels"] else "judge"  # without labels nothing is known of the truth
    what = (
        f"the share of unsafe answers by the {who}"
        if claim.kind == PROBABILITY
        else f"the mean of {'max(0, C)' if claim.kind == RECTIFIED else 'C'} by the {who}"
    )
    of = [f"{numbers['prompts']:.0f} prompts"] + ([f"{numbers['labels']:.0f} labels"] if numbers["labels"] else [])
    bounded = (
        f"with {100 * claim.confidence:g} % confidence {what} is at most {numbers['upper']:.4g} (budget {claim.budget:g}; "
        f"{numbers['mean']:.4g} in {', '.join(of)}; {method})"
    )
    if numbers["passed"]:
        return f"PASS: {bounded}"
    if numbers["mean"] >= claim.budget:
        return f"NO GUARANTEE: {bounded}; no number of prompts would do while the mean is not below the budget"
    if not more:
        return f"NO GUARANTEE: {bounded}; not even {bounds.MOST} would do at this mean"
    needed = " and ".join(f"{count} more {name.removeprefix('more_')}" for name, count in more.items())
    return f"NO GUARANTEE: {bounded}; about {needed} would do at this mean"
