"""The section about the guard: what it knows, what it does for each policy, and safety after each round of regeneration."""

import numpy as np

from srlhfv_jax.report import page, plots, policies
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
    numbers = policies.numeric(work.result)
    title = "Guard: filter and regenerate"
    if "guard.f1" not in numbers:
        return Section("guard", title, "", "No guard was trained here.")
    intro = page.paragraph(
        "The guard judges questions and answers; an unsafe answer is sampled again. What is shown is judged by the oracle, "
        "never by the guard."
    )
    rows = [
        (label, *(page.number(numbers[f"{name}.{key}"]) if f"{name}.{key}" in numbers else "–" for key, _ in KNOWS))
        for name, label in ROWS
        if f"{name}.f1" in numbers
    ]
    knows = page.table(("judged", *(heading for _, heading in KNOWS)), rows, numbers=True, caption="What the guard knows")
    guarded = [name for name in policies.of(work).names if f"{name}{GUARDED}.helpful" in numbers]
    if guarded:
        shown = [pair for name in guarded for pair in ((name, name), (name + GUARDED, f"{name} + guard"))]
        pictures = page.figures([_plane(numbers, guarded), *_rounds(numbers, guarded[0])])
        body = (
            intro
            + pictures
            + knows
            + policies.table(numbers, shown, policies.ORACLE.columns, "Policies without and with the guard")
        )
    else:
        body = intro + knows
    ways = [
        (label, page.number(numbers[f"guard.over_refusal.{way}"]))
        for way, label in WAYS
        if f"guard.over_refusal.{way}" in numbers
    ]
    if ways:
        heading = f"over-refusal of {guarded[0]}" if guarded else "over-refusal"
        body += page.table(("guard checks", heading), ways, numbers=True)
    return Section("guard", title, body)


def _plane(numbers: dict[str, float], names: list[str]) -> str:
    judge = policies.ORACLE
    places = policies.points(numbers, [(name, name) for name in names], judge)
    after = policies.points(numbers, [(name + GUARDED, f"{name} + guard") for name in names], judge)
    draw = plots.moves(
        list(zip(places, after, strict=True)),
        numbers.get(judge.budget),
        f"mean {judge.cost_name} (right is worse)",
        f"mean {judge.merit_name}",
    )
    words = policies.in_words([*places, *after], judge)
    caption = "Each policy without the guard (hollow) and with it (filled)."
    return picture(draw, "Guard off and on", f"Reward-cost plane. {words}.", caption)


def _rounds(numbers: dict[str, float], name: str) -> list[str]:
    count = next(k for k in range(len(numbers) + 1) if f"guard.safety_round_{k}" not in numbers)
    if not count:
        return []
    safety = [numbers[f"guard.safety_round_{k}"] for k in range(count)]
    draw = plots.lines(
        [plots.Line(name, np.arange(count), np.array(safety), noisy=False)],
        xlabel="rounds of regeneration",
    )
    words = ", ".join(f"{value:.2f}" for value in safety)
    title, alt = f"Safety of {name} on harmful prompts", f"Share of safe answers after rounds 0 to {count - 1}: {words}."
    return [picture(draw, title, alt, "Share of answers that are safe after each round of regeneration.")]
