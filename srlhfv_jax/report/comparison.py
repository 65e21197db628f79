"""Other ways to make the same policy safer, beside PPO-Lagrangian: what `quickstart --compare` measured."""

from collections.abc import Mapping, Sequence

from srlhfv_jax.report import page, parameters, plots, policies
from srlhfv_jax.report.figure import picture
from srlhfv_jax.report.labels import Point
from srlhfv_jax.report.page import Section
from srlhfv_jax.report.workdir import Workdir

MAIN = "ppo_lag"
UNANSWERED = "Harm against what is left unanswered"
BETTER = {"helpful": 1, "harm_rate": -1, "over_refusal": -1, "evasion_rate": -1}  # which way each number is better
COLUMNS = (
    ("helpful", "helpful"),
    ("helpful_benign", "on harmless"),
    ("cost", "cost"),
    ("harm_rate", "harm rate"),
    ("over_refusal", "over-refusal"),
    ("evasion_rate", "evasion"),
    ("unanswered", "harmless, unanswered"),
    ("length", "tokens"),
)


def comparison_section(work: Workdir) -> Section:
    """Both planes, who dominates whom, and the table with seconds."""
    numbers, compared = policies.numeric(work.result), policies.of(work)
    if not compared.methods:
        return _of_users(numbers, compared.names)
    names = [name for name in ("sft", MAIN) if name in compared.names] + list(compared.methods)
    budget = numbers.get(compared.judge.budget)
    body = page.paragraph(dominated(numbers, names))
    places = policies.points(numbers, [(name, name) for name in names], compared.judge)
    drawn = [
        picture(
            plots.plane(
                places,
                budget,
                "mean true cost (right is worse)",
                "mean helpfulness",
                front=plots.pareto(places, up=True),
            ),
            "Helpfulness against cost",
            f"Helpfulness against cost. {policies.in_words(places, compared.judge)}.",
            "Up is better, left is safer; bars are one standard error. The shaded side is within the budget. The dotted line joins "
            "policies that no other beats in both.",
        )
    ]
    if answers := _unanswered(numbers, names):
        drawn.append(_against_unanswered(answers, UNANSWERED))
    body += page.figures([*drawn, *parameters.pictures(numbers)])
    rows = [(page.escape(name), *_cells(numbers, name), _seconds(numbers, name)) for name in names]
    body += page.table(("", *(heading for _, heading in COLUMNS), "seconds"), rows, numbers=True)
    if compared.steps:
        body += page.table(
            ("", *(heading for _, heading in COLUMNS)),
            [(page.escape(f"{curve} {number:g}"), *_cells(numbers, name)) for name, curve, number in compared.steps],
            numbers=True,
            caption="The same with other values of one number: those of the curves",
        )
    body += page.paragraph(
        "Seconds of each method begin at the supervised policy and its pairs; what the reference says of the pairs is computed once for all "
        "methods, and its seconds are shared evenly. Those of a method that reads the scorer, as ppo_lag does, have the scorer's with them.",
        "dim",
    )
    return Section("comparison", "Other methods", body)


def _of_users(numbers: Mapping[str, float], names: Sequence[str]) -> Section:
    """The second plane where no method was compared: policies of `srlhfv evaluate`, or of the quickstart, judged by the oracle."""
    answers = _unanswered(numbers, names)
    body = page.figures([_against_unanswered(answers, "")]) if len(answers) > 1 else ""
    return Section("comparison", UNANSWERED if body else "Other methods", body)


def _against_unanswered(answers: Sequence[Point], title: str) -> str:
    words = "; ".join(f"{point.name}: {point.cost:.2f}, harm {point.helpful:.2f}" for point in answers)
    return picture(
        plots.plane(
            answers,
            None,
            "share of harmless prompts without a proper answer",
            "harm rate of harmful prompts",
            front=plots.pareto(answers, up=False),
        ),
        title,
        f"Harm rate against the share of harmless prompts without a proper answer. {words}.",
        "Down and left is better: declining or evading everything is safe, and of no use. The dotted line joins policies that no other "
        "beats in both.",
    )


def dominated(numbers: Mapping[str, float], names: Sequence[str]) -> str:
    """A sentence on the methods that are as good as PPO-Lagrangian in everything and better in something."""

    def at_least_as_good(name: str) -> bool:
        gaps = [sign * (numbers[f"{name}.{key}"] - numbers[f"{MAIN}.{key}"]) for key, sign in BETTER.items()]
        return min(gaps) >= 0 and max(gaps) > 0

    measured = [name for name in names if all(f"{name}.{key}" in numbers for key in BETTER)]
    if MAIN not in measured:
        return "PPO-Lagrangian was not measured here."
    better = [name for name in measured if name not in ("sft", MAIN) and at_least_as_good(name)]
    among = "in helpfulness, harm, over-refusal and evasion together"
    return (
        f"{', '.join(better) if better else 'No method here'} {'dominates' if len(better) < 2 else 'dominate'} ppo_lag {among}."
    )


def _unanswered(numbers: Mapping[str, float], names: Sequence[str]) -> list[Point]:
    keys = ("unanswered", "harm_rate")
    return [
        Point(name, *(numbers[f"{name}.{key}"] for key in keys), *(numbers.get(f"{name}.{key}_se", 0.0) for key in keys))
        for name in names
        if all(f"{name}.{key}" in numbers for key in keys)
    ]


def _cells(numbers: Mapping[str, float], name: str) -> list[str]:
    return [f"{numbers[key]:.2f}" if (key := f"{name}.{column}") in numbers else "–" for column, _ in COLUMNS]


def _seconds(numbers: Mapping[str, float], name: str) -> str:
    seconds = numbers.get(f"{name}.seconds")
    return "–" if seconds is None else f"{seconds:.0f}"
