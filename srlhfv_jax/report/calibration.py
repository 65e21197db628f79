"""The section about a scorer's calibration: said probabilities of harm beside the share that annotators saw."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from srlhfv_jax.report import page
from srlhfv_jax.report.figure import Draw, Theme, fit, picture, slots
from srlhfv_jax.report.page import Section
from srlhfv_jax.report.workdir import Workdir

MEASURES = (("calibration_error", "calibration error"), ("log_loss", "log loss"), ("brier", "Brier score"))


def calibration_section(work: Workdir) -> Section:
    drawn, numbers = work.calibration.get("reliability"), work.calibration.get("numbers")
    title = "Calibration: P(unsafe | cost)"
    if not (isinstance(drawn, dict) and drawn and isinstance(numbers, dict)):
        return Section("calibration", title, "")
    rows = [
        (name, *(page.number(numbers.get(f"{key}{suffix}", "–")) for key, _ in MEASURES))
        for name, suffix in zip(drawn, ("", "_calibrated"))
    ]
    words = "; ".join(
        f"{name}: " + ", ".join(f"{one['said']:.2f} said, {one['seen']:.2f} seen" for one in bins) for name, bins in drawn.items()
    )
    caption = "Each point is the answers of one bin of said probabilities; on the diagonal as many are unsafe as was said."
    body = picture(diagram(drawn), "", f"Reliability diagram. {words}.", caption)
    table = page.table(("probability", *(name for _, name in MEASURES)), rows, numbers=True)
    text = page.paragraph(
        f"On {page.number(numbers['answers'])} labelled answers, {page.number(numbers['unsafe_share'])} of them unsafe. Calibrated "
        "probabilities are of answers that were left out of the fit. An answer of cost 0 is unsafe with probability "
        f"{page.number(numbers['probability_at_zero'])}."
    )
    return Section("calibration", title, page.beside(body, table + text))


def diagram(drawn: dict[str, list[dict[str, Any]]]) -> Draw:
    """Seen against said, a line for each way to say it; the area of a point is its share of the answers."""
    places = slots(list(drawn))

    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot([0, 1], [0, 1], color=theme.dim, linewidth=1, linestyle=":")
        for name, bins in drawn.items():
            x, y, rows = (np.array([some[key] for some in bins], float) for key in ("said", "seen", "rows"))
            axes.plot(x, y, color=theme.lines[places[name]], label=name)
            axes.scatter(x, y, s=12 + 120 * rows / rows.sum(), color=theme.lines[places[name]])
        axes.set_xlabel("said probability of harm")
        axes.set_ylabel("share of unsafe answers")
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        fit(axes)
        axes.legend(loc="upper left")

    return draw
