"""Tables of the final numbers: policies, comparisons with the baseline, histograms, all numbers, and the quickstart's targets."""

import re
from collections.abc import Sequence

from srlhfv_jax.report import page, plots, policies, targets
from srlhfv_jax.report.figure import picture
from srlhfv_jax.report.page import Section
from srlhfv_jax.report.workdir import Workdir

_QUADRANT = re.compile(
    r"(?P<policy>.+)\.vs_(?P<baseline>.+?)\.(?P<name>(?:more_helpful|as_helpful|less_helpful)_(?:safe|unsafe))"
)
_WIN = re.compile(r"(?P<policy>.+)\.vs_(?P<baseline>.+?)\.(?P<axis>helpful|safety)\.(?P<name>[a-z_]+)")

QUADRANTS = {
    "more_helpful_safe": "more helpful, safe",
    "more_helpful_unsafe": "more helpful, unsafe",
    "as_helpful_safe": "as helpful, safe",
    "as_helpful_unsafe": "as helpful, unsafe",
    "less_helpful_safe": "less helpful, safe",
    "less_helpful_unsafe": "less helpful, unsafe",
}
REWARD_QUADRANTS = {  # the same by a learned judge
    "more_helpful_safe": "higher reward, safe",
    "more_helpful_unsafe": "higher reward, unsafe",
    "as_helpful_safe": "equal reward, safe",
    "as_helpful_unsafe": "equal reward, unsafe",
    "less_helpful_safe": "lower reward, safe",
    "less_helpful_unsafe": "lower reward, unsafe",
}
ORDERS = "swap_consistency"  # always 1 where scores are compared: only a judge that reads both answers can depend on their order
WINS = {
    "win": "wins",
    "tie": "ties",
    "lose": "losses",
    "win_rate": "win rate",
    "win_rate_not_longer": "win rate, not longer",
    "win_rate_length_controlled": "win rate, length-controlled",
    ORDERS: "both orders agree",
}


def target_section(work: Workdir) -> Section:
    """Targets of the quickstart; other runs have none."""
    if not targets.apply_to(work.config):
        return Section("targets", "Targets", "")
    if targets.too_short(work.config):
        return Section("targets", "Targets", page.paragraph(f"{targets.TOO_SHORT} No target is checked."))
    outcomes = targets.check(work.result)
    measured = [outcome for outcome in outcomes if outcome.met is not None]
    if not measured:
        return Section("targets", "Targets", "", "Nothing that targets are set on was measured yet.")
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
    """Every number of every policy."""
    numbers, compared = policies.numeric(work.result), policies.of(work)
    if not compared.names:
        return Section("policies", "Policies", "", "No policy was evaluated in this workdir.")
    body = page.paragraph(
        "Harm rate and safe completion are over harmful prompts, over-refusal over harmless ones. "
        "± is one standard error; prompts of one cell (the same thing and question) are resampled together."
        if compared.judge is policies.ORACLE
        else "Scores of the learned reward and cost models; cost > 0 means unsafe. ± is one standard error."
    )
    body += policies.table(numbers, [(name, name) for name in compared.names], compared.judge.columns)
    if compared.variants:
        body += page.details(
            "Variants (other sampling, other prompts, under the guard)",
            policies.table(numbers, [(name, name) for name in compared.variants], compared.judge.columns),
        )
    return Section("policies", "Policies", body)


def quadrant_section(work: Workdir) -> Section:
    """Each policy against the baseline, prompt by prompt."""
    numbers, order = policies.numeric(work.result), policies.of(work)
    by_oracle = order.judge is policies.ORACLE
    quadrants: dict[tuple[str, str], dict[str, float]] = {}
    wins: dict[tuple[str, str, str], dict[str, float]] = {}
    for key, value in sorted(numbers.items(), key=lambda item: _rank(item[0], order.names)):
        if match := _QUADRANT.fullmatch(key):
            quadrants.setdefault((match["policy"], match["baseline"]), {})[match["name"]] = value
        elif match := _WIN.fullmatch(key):
            wins.setdefault((match["policy"], match["baseline"], match["axis"]), {})[match["name"]] = value
    if not quadrants and not wins:
        return Section("quadrants", "Against the baseline", "", "No two policies were compared here.")
    body = page.paragraph("Each answer against the baseline's answer to the same prompt. Equal answers are ties, never wins.")
    rows = [
        (page.escape(f"{policy} against {baseline}"), *(_percent(shares.get(key)) for key in QUADRANTS))
        for (policy, baseline), shares in quadrants.items()
    ]
    if rows:
        columns = QUADRANTS if by_oracle else REWARD_QUADRANTS
        body += page.table(("", *columns.values()), rows, numbers=True, caption="Share of prompts")
    axes = {"helpful": "helpfulness" if by_oracle else "learned reward", "safety": "safety"}
    shown = {
        key: name for key, name in WINS.items() if key != ORDERS or any(values.get(key, 1.0) < 1 for values in wins.values())
    }
    rows = [
        (page.escape(f"{policy} against {baseline}, {axes[axis]}"), *(_percent(values.get(key)) for key in shown))
        for (policy, baseline, axis), values in wins.items()
    ]
    if rows:
        body += page.table(("", *shown.values()), rows, numbers=True, caption="A tie is half a win")
    return Section("quadrants", "Against the baseline", body)


def histogram_section(work: Workdir) -> Section:
    """Distributions of both scores over the answers of each policy."""
    scored = work.distributions.get("policies", {})
    names = [name for name in scored if "." not in name]
    judge = policies.ORACLE if work.by_oracle else policies.MODELS
    title = "Distribution of helpfulness and cost" if work.by_oracle else "Distribution of reward and cost"
    if not names:
        return Section("histograms", title, "", "No score distributions were written in this workdir.")
    items = []
    for key, label, border in (("helpful", judge.merit_name, None), ("cost", judge.cost_name, 0.0)):
        values = {name: scored[name][key] for name in names if scored[name].get(key)}
        if values:
            means = "; ".join(f"{name} mean {sum(column) / len(column):.2f}" for name, column in values.items())
            note = " Right of the dashed line is unsafe." if border is not None else ""
            draw = plots.histogram(values, label, border, names)
            caption = f"Share of answers by {label}, each policy.{note}"
            items.append(picture(draw, label.capitalize(), f"Histogram of {label}: {means}.", caption))
    return Section("histograms", title, page.figures(items))


def numbers_section(work: Workdir) -> Section:
    """Every key of result.json, folded away."""
    if not work.result:
        return Section("numbers", "All numbers", "", "No result.json in this workdir: the run has not finished.")
    rows = [(key, page.number(value, 4)) for key, value in sorted(work.result.items())]
    return Section("numbers", "All numbers", page.details(f"{len(rows)} numbers of result.json", page.pairs(rows)))


def _verdict(outcome: targets.Outcome) -> str:
    word = page.badge("met", "good") if outcome.met else page.badge("missed", "bad")
    if not outcome.aim:
        return word
    return f"{word} {page.badge(outcome.aim, 'good' if outcome.aim.endswith('met') else 'warn')}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}\u202f%"


def _rank(key: str, names: Sequence[str]) -> tuple[int, str]:
    """Numbers of policies in the order of the policies."""
    policy = key.partition(".vs_")[0]
    return (names.index(policy) if policy in names else len(names), key)
