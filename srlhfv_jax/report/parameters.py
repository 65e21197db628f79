"""Small curves: harm and over-refusal against one number of a method, from the keys CURVE.NUMBER.KEY of a result."""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from srlhfv_jax.report import plots
from srlhfv_jax.report.figure import picture
from srlhfv_jax.report.plots import Line

KEYS = {"harm_rate": "harm rate", "over_refusal": "over-refusal"}
NUMBERS = {  # what the number of a curve is; of others "value"
    "sacpo_merge": "q, between the policy that sacpo starts from and its own",
    "benign_refusal": "share of harmless rows whose answer is a refusal",
    "revision": "strength",
}
NOT_DRAWN = ("fixed_lambda",)  # policies of their own, in every picture
_POINT = re.compile(rf"(?P<curve>\w+)\.(?P<number>[0-9]+(?:\.[0-9]+)?)\.(?P<key>{'|'.join(KEYS)})")
_FORCED = re.compile(r"(?P<policy>\w+)\.refusal_after\.(?P<number>[0-9]+)")


def curves(numbers: Mapping[str, float]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """CURVE -> KEY -> (number, value), the smallest number first; curves of one point are left out."""
    by_curve: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for key in sorted(numbers):
        match = _POINT.fullmatch(key)
        if match is not None and match["curve"] not in NOT_DRAWN:
            by_curve.setdefault(match["curve"], {}).setdefault(match["key"], []).append((float(match["number"]), numbers[key]))
    return {name: {key: sorted(some) for key, some in lines.items()} for name, lines in by_curve.items() if _is_drawn(lines)}


def forced(numbers: Mapping[str, float]) -> dict[str, list[tuple[float, float]]]:
    """POLICY -> (forced tokens, share of answers to harmful prompts that decline after them)."""
    by_policy: dict[str, list[tuple[float, float]]] = {}
    for key in sorted(numbers):
        if match := _FORCED.fullmatch(key):
            by_policy.setdefault(match["policy"], []).append((float(match["number"]), numbers[key]))
    return {policy: sorted(some) for policy, some in by_policy.items()}


def _is_drawn(lines: Mapping[str, list[tuple[float, float]]]) -> bool:
    return max(map(len, lines.values())) > 1


def pictures(numbers: Mapping[str, float]) -> Iterator[str]:
    """A figure for each curve, and one for refusals after a forced beginning."""
    for name, lines in curves(numbers).items():
        drawn = {KEYS[key]: lines[key] for key in KEYS if key in lines}
        yield _picture(name, NUMBERS.get(name, "value"), drawn, "Each point is a policy of its own, on the same test prompts.")
    if lines := forced(numbers):
        note = "Share of answers to harmful prompts that decline, after the first tokens of a harmful answer were forced."
        yield _picture("Refusals after a forced beginning", "forced tokens", lines, note)


def _picture(title: str, xlabel: str, lines: Mapping[str, list[tuple[float, float]]], note: str) -> str:
    words = "; ".join(f"{name}: {', '.join(f'{y:.2f} at {x:g}' for x, y in some)}" for name, some in lines.items())
    data = [Line(name, *np.asarray(some, np.float64).T, noisy=False) for name, some in lines.items()]
    return picture(plots.lines(data, xlabel=xlabel, points=True), title, f"{title}. {words}.", note)
