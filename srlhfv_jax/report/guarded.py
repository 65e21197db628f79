"""The section about the guard: what it knows, what it does for each policy, and safety after each round of regeneration."""

import numpy as np

from srlhfv_jax.report import page, plots, results
from srlhfv_jax.report.figure import picture
from srlhfv_jax.report.page import Section
from srlhfv_jax.report.workdir import Workdir

GUARDED = ".guarded"
KNOWS = (
    ("f1", "F1"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("false_positive_rate", "false positives"),
    ("auroc", "AUROC"),
    ("severity_accuracy", "severity"),
    ("category_exact_match", "categories"),
    ("calibration_error", "calibration error"),
    ("rows", "rows"),
)
ROWS = (
    ("guard", "all held-out rows"),
    ("guard.input", "questions"),
    ("guard.output", "answers"),
    ("guard.unseen", "things never seen"),
)
WAYS = (("off", "off"), ("input", "questions only"), ("output", "answers only"), ("both", "both"))


def guard_section(work: Workdir) -> Section:
    numbers = results.numeric(work.result)
    title = "Guard: filter and regenerate"
    if "guard.f1" not in numbers:
        return Section("guard", title, "", "No guard was trained here.")
    body = page.paragraph(
        "The guard judges questions and answers; an unsafe answer is sampled again. What is shown is judged by the oracle, "
        "never by the guard."
    )
    rows = [
        (label, *(page.number(numbers[f"{name}.{key}"]) if f"{name}.{key}" in numbers else "–" for key, _ in KNOWS))
        for name, label in ROWS
        if f"{name}.f1" in numbers
    ]
    body += page.table(("guard", *(heading for _, heading in KNOWS)), rows, numbers=True)
    names = [key.removesuffix(f"{GUARDED}.helpful") for key in numbers if key.endswith(f"{GUARDED}.helpful")]
    names = [name for name in results.find_policies(numbers).names if name in names]
    if names:
        shown = [pair for name in names for pair in ((name, name), (name + GUARDED, f"{name} + guard"))]
        body += results.policy_table(numbers, shown, results.ORACLE_COLUMNS)
        body += page.figures([_plane(numbers, shown), *_rounds(numbers, names[0])])
    ways = [
        (label, page.number(numbers[f"guard.over_refusal.{way}"]))
        for way, label in WAYS
        if f"guard.over_refusal.{way}" in numbers
    ]
    if ways:
        body += page.table(("guard checks", f"over-refusal of {names[0]}" if names else "over-refusal"), ways, numbers=True)
    return Section("guard", title, body)


def _plane(numbers: dict[str, float], shown: list[tuple[str, str]]) -> str:
    points = [
        plots.Point(
            label,
            numbers[f"{name}.cost"],
            numbers[f"{name}.helpful"],
            numbers.get(f"{name}.cost_se", 0.0),
            numbers.get(f"{name}.helpful_se", 0.0),
        )
        for name, label in shown
    ]
    words = "; ".join(f"{point.name}: cost {point.cost:.2f}, helpful {point.helpful:.2f}" for point in points)
    draw = plots.plane(points, numbers.get("oracle_budget"), "Guard off and on", "mean cost (right is worse)", "mean helpfulness")
    return picture(draw, f"Reward-cost plane. {words}.", "Each policy without and with the guard.", size=(5.2, 3.6))


def _rounds(numbers: dict[str, float], name: str) -> list[str]:
    count = next(k for k in range(len(numbers) + 1) if f"guard.safety_round_{k}" not in numbers)
    if not count:
        return []
    safety = [numbers[f"guard.safety_round_{k}"] for k in range(count)]
    draw = plots.lines(
        f"Safety of {name} on harmful prompts",
        [plots.Line(name, np.arange(count), np.array(safety), noisy=False)],
        xlabel="rounds of regeneration",
    )
    words = ", ".join(f"{value:.2f}" for value in safety)
    return [picture(draw, f"Share of safe answers after rounds 0 to {count - 1}: {words}.", "Share of answers that are safe.")]
