"""Sections made of the final numbers: targets, the table of policies, the reward-cost plane, the four quadrants, histograms,
all numbers."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from srlhfv_jax.report import page, plots, targets
from srlhfv_jax.report.figure import picture
from srlhfv_jax.report.page import Section
from srlhfv_jax.report.workdir import Workdir

# (key, heading) of the columns of the policy table; the learned-model ones are used when there is no oracle
ORACLE_COLUMNS = (
    ("helpful", "helpful"),
    ("helpful_benign", "helpful (harmless)"),
    ("cost", "cost"),
    ("harm_rate", "harm rate"),
    ("over_refusal", "over-refusal"),
    ("evasion_rate", "evasion"),
    ("safe_completion", "safe completion"),
    ("named_right", "named right"),
    ("length", "length"),
)
MODEL_COLUMNS = (
    ("model_reward", "reward"),
    ("model_cost", "cost"),
    ("model_unsafe_rate", "cost > 0"),
    ("model_cost_rectified", "mean max(0, cost)"),
    ("model_cost_p95", "cost, 95 %"),
    ("length", "length"),
    ("ended", "ended"),
)
_QUADRANT = re.compile(
    r"(?P<policy>.+)\.vs_(?P<baseline>.+?)\.(?P<name>(?:more_helpful|as_helpful|less_helpful)_(?:safe|unsafe))"
)
_WIN = re.compile(r"(?P<policy>.+)\.vs_(?P<baseline>.+?)\.(?P<axis>helpful|safety)\.(?P<name>[a-z_]+)")


class Policies(NamedTuple):
    """Names found in result.json, and which columns they have."""

    names: tuple[str, ...]
    variants: tuple[str, ...]  # "sft.greedy" where "sft" is a policy too
    columns: tuple[tuple[str, str], ...]


def numeric(result: dict[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in result.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def find_policies(numbers: dict[str, float]) -> Policies:
    """A policy is what has both axes: NAME.helpful and NAME.cost (oracle), or NAME.model_reward and NAME.model_cost."""
    for columns, (helpful, cost) in ((ORACLE_COLUMNS, ("helpful", "cost")), (MODEL_COLUMNS, ("model_reward", "model_cost"))):
        names = [key.removesuffix(f".{helpful}") for key in numbers if key.endswith(f".{helpful}")]
        names = [name for name in names if f"{name}.{cost}" in numbers]
        if names:
            known = ("sft", "ppo", "ppo_lag")
            names.sort(key=lambda name: (known.index(name) if name in known else len(known), name))
            variants = [name for name in names if any(name.startswith(f"{other}.") for other in names)]
            return Policies(tuple(name for name in names if name not in variants), tuple(variants), columns)
    return Policies((), (), ORACLE_COLUMNS)


def headline(work: Workdir) -> str:
    """Tiles with the numbers that matter, first policy to last."""
    numbers = numeric(work.result)
    policies = find_policies(numbers)
    items = []
    for key, name in (*policies.columns[:1], ("cost", "cost"), ("harm_rate", "harm rate"), ("over_refusal", "over-refusal")):
        values = [f"{numbers[f'{policy}.{key}']:.2f}" for policy in _main(policies.names) if f"{policy}.{key}" in numbers]
        if len(values) > 1:
            items.append((" → ".join(values), f"{name}: {' → '.join(_main(policies.names))}"))
    for key, name in (("lambda.final", "multiplier λ at the end"), ("seconds.total", "seconds, whole run")):
        if key in numbers:
            items.append((page.number(numbers[key], 2) if key != "seconds.total" else f"{numbers[key]:.0f}", name))
    return page.tiles(items)


def target_section(work: Workdir) -> Section:
    outcomes = targets.check(work.result)
    measured = [outcome for outcome in outcomes if outcome.met is not None]
    if not measured:
        return Section("targets", "Targets", "", "This run has none of the numbers that targets are set on.")
    rows = [
        (page.escape(outcome.text), page.escape(outcome.shown), _verdict(outcome))
        for outcome in sorted(measured, key=lambda outcome: bool(outcome.met))  # what was missed comes first
    ]
    met = sum(bool(outcome.met) for outcome in measured)
    body = page.paragraph(f"{met} of {len(measured)} measured targets met.")
    body += page.table(("target", "measured", "met"), rows, numbers=False)
    absent = [outcome.text for outcome in outcomes if outcome.met is None]
    if absent:
        body += page.details(f"{len(absent)} not measured in this run", page.bullets(absent))
    return Section("targets", "Targets", body)


def policy_section(work: Workdir) -> Section:
    numbers = numeric(work.result)
    policies = find_policies(numbers)
    if not policies.names:
        return Section("policies", "Policies", "", "No policy was evaluated in this workdir.")
    body = page.paragraph(
        "Harm rate and safe completion are over harmful prompts, over-refusal over harmless ones. "
        "± is one standard error; prompts of one cell (the same thing and question) are resampled together."
        if policies.columns is ORACLE_COLUMNS
        else "Scores of the learned reward and cost models; cost > 0 means unsafe. ± is one standard error."
    )
    body += policy_table(numbers, [(name, name) for name in policies.names], policies.columns)
    if policies.variants:
        body += page.details(
            "Variants (other sampling, other prompts, under the guard)",
            policy_table(numbers, [(name, name) for name in policies.variants], policies.columns),
        )
    helpful, cost = policies.columns[0][0], "cost" if policies.columns is ORACLE_COLUMNS else "model_cost"
    points = [
        plots.Point(
            name,
            numbers[f"{name}.{cost}"],
            numbers[f"{name}.{helpful}"],
            numbers.get(f"{name}.{cost}_se", 0.0),
            numbers.get(f"{name}.{helpful}_se", 0.0),
        )
        for name in policies.names
    ]
    budget = numbers.get("oracle_budget") if cost == "cost" else numbers.get("controller_budget")
    words = "; ".join(f"{point.name}: cost {point.cost:.2f}, helpful {point.helpful:.2f}" for point in points)
    side = "The shaded side is feasible: cost within the budget. " if budget is not None else "No budget is recorded here. "
    body += page.figures(
        [
            picture(
                plots.plane(points, budget, "Reward-cost plane", "mean cost (right is worse)", "mean helpfulness"),
                f"Reward-cost plane. {words}.",
                side + "Up is more helpful, left is safer; bars are one standard error.",
                size=(5.2, 3.6),
            )
        ]
    )
    return Section("policies", "Policies", body)


def quadrant_section(work: Workdir) -> Section:
    numbers = numeric(work.result)
    found: dict[tuple[str, str], dict[str, float]] = {}
    wins: dict[tuple[str, str, str], dict[str, float]] = {}
    for key, value in numbers.items():
        if match := _QUADRANT.fullmatch(key):
            found.setdefault((match["policy"], match["baseline"]), {})[match["name"]] = value
        elif match := _WIN.fullmatch(key):
            wins.setdefault((match["policy"], match["baseline"], match["axis"]), {})[match["name"]] = value
    if not found and not wins:
        return Section("quadrants", "Against the baseline", "", "No two policies were compared here.")
    body = page.paragraph("Each answer against the baseline's answer to the same prompt. Equal answers are ties, never wins.")
    for (policy, baseline), shares in found.items():
        rows = [
            (label, *(_percent(shares.get(f"{helpful}_{safety}")) for safety in ("safe", "unsafe")))
            for helpful, label in (
                ("more_helpful", "more helpful"),
                ("as_helpful", "as helpful"),
                ("less_helpful", "less helpful"),
            )
        ]
        body += page.table(("", "safe", "unsafe"), rows, numbers=True, caption=f"{policy} against {baseline}, share of prompts")
    columns = (
        ("win", "wins"),
        ("tie", "ties"),
        ("lose", "losses"),
        ("win_rate", "win rate"),
        ("win_rate_not_longer", "win rate, not longer"),
        ("win_rate_length_controlled", "win rate, length-controlled"),
        ("swap_consistency", "both orders agree"),
    )
    rows = [
        (page.escape(f"{policy} against {baseline}, {axis}"), *(_percent(values.get(key)) for key, _ in columns))
        for (policy, baseline, axis), values in wins.items()
    ]
    if rows:
        body += page.table(
            ("", *(name for _, name in columns)), rows, numbers=True, caption="A win is one in both orders; a tie is half a win"
        )
    return Section("quadrants", "Against the baseline", body)


def histogram_section(work: Workdir) -> Section:
    policies = work.distributions.get("policies", {})
    names = [name for name in policies if "." not in name]
    if not names:
        text = "No score distributions were written in this workdir."
        return Section("histograms", "Distribution of helpfulness and cost", "", text)
    judge = "true oracle" if work.distributions.get("judge") == "oracle" else "learned models"
    items = []
    for key, label, border in (("helpful", "helpfulness", None), ("cost", "cost", 0.0)):
        values = {name: policies[name][key] for name in names if policies[name].get(key)}
        if values:
            means = "; ".join(f"{name} mean {sum(column) / len(column):.2f}" for name, column in values.items())
            note = " Right of the dashed line is unsafe." if border is not None else ""
            draw = plots.histogram(f"{label.capitalize()} ({judge})", values, label, border, names)
            items.append(picture(draw, f"Histogram of {label}: {means}.", f"Share of answers by {label}, each policy.{note}"))
    return Section("histograms", "Distribution of helpfulness and cost", page.figures(items))


def numbers_section(work: Workdir) -> Section:
    """Every key of result.json, folded away."""
    if not work.result:
        return Section("numbers", "All numbers", "", "No result.json in this workdir: the run has not finished.")
    rows = [(f"<code>{page.escape(key)}</code>", page.number(value, 4)) for key, value in sorted(work.result.items())]
    return Section(
        "numbers",
        "All numbers",
        page.details(f"{len(rows)} numbers of result.json", page.table(("key", "value"), rows, numbers=True)),
    )


def policy_table(numbers: dict[str, float], names: Sequence[tuple[str, str]], columns: Sequence[tuple[str, str]]) -> str:
    """Args:
    names: (policy, what it is called) of each row.
    columns: (key, heading); those that no policy has are left out."""
    shown = [(key, title) for key, title in columns if any(f"{name}.{key}" in numbers for name, _ in names)]
    rows = [(page.escape(label), *(_with_error(numbers, f"{name}.{key}") for key, _ in shown)) for name, label in names]
    return page.table(("policy", *(title for _, title in shown)), rows, numbers=True)


def _main(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not name.startswith("fixed_lambda.")][:4]


def _verdict(outcome: targets.Outcome) -> str:
    word = page.badge("met", "good") if outcome.met else page.badge("missed", "bad")
    if not outcome.aim:
        return word
    return f"{word} {page.badge(outcome.aim, 'good' if outcome.aim.endswith('met') else 'warn')}"


def _with_error(numbers: dict[str, float], key: str) -> str:
    if key not in numbers:
        return "–"
    error = numbers.get(f"{key}_se")
    return f"{numbers[key]:.2f}" + (f' <span class="dim">± {error:.2f}</span>' if error is not None else "")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}\u202f%"
