"""The page of `srlhfv weights diagnose`: layer by layer, where a change of weights lies, and how far apart two kinds of prompts are."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srlhfv_jax import files
from srlhfv_jax.parallel import hosts
from srlhfv_jax.report import page, plots
from srlhfv_jax.report.figure import picture
from srlhfv_jax.report.page import Section
from srlhfv_jax.report.plots import Line


def write(workdir: Path, result: Mapping[str, Any], before: str, after: str) -> None:
    """Write WORKDIR/result.json and WORKDIR/report.html; of several processes the first one does.

    Args:
        result: of `runs.diagnose.run`. before, after: names of both policies.
    """
    if hosts.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_text(workdir / "result.json", json.dumps(result, indent=2) + "\n")
        files.write_text(workdir / "report.html", document(result, before, after))


def document(result: Mapping[str, Any], before: str, after: str) -> str:
    """The whole page, as HTML."""
    shares = [_line(name, values) for name, values in result["outside"].items()]
    shares += [_line(f"{name}, random", values, dashed=True) for name, values in result["outside_random"].items()]
    apart = [_line(side, values) for side, values in result["separation"].items()]
    drawn = [
        _drawn(
            shares, "Energy of the change outside W's leading directions", "Above its dashed line a change avoids where W writes."
        ),
        _drawn(apart, "Separation of safe and unsafe prompts", "Distance of the means at the last prompt token over the spread."),
    ]
    lead = page.paragraph(f"From {before} to {after}.", "lead")
    return page.page("Change of weights", lead, [Section("layers", "Layer by layer", page.figures(drawn))], "")


def _drawn(lines: Sequence[Line], title: str, caption: str) -> str:
    words = "; ".join(f"{line.name}: {', '.join(f'{value:.2f}' for value in line.values)}" for line in lines)
    return picture(plots.lines(lines, xlabel="layer"), title, f"{title}, by layer. {words}.", caption)


def _line(name: str, values: Sequence[float | None], *, dashed: bool = False) -> Line:
    numbers = np.array([np.nan if value is None else value for value in values])
    return Line(name, np.arange(len(numbers)), numbers, dashed, noisy=False)
