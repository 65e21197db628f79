"""WORKDIR -> WORKDIR/report.html."""

import os
from pathlib import Path

from srlhfv_jax.report import calibration, comparison, curves, guarded, lead, page, results, samples, warnings
from srlhfv_jax.report.workdir import Workdir, read

TITLE = "Safe RLHF-V"


def write_report(workdir: Path | str, path: Path | str | None = None, *, reload_seconds: int = 0) -> Path:
    """Write the report of a workdir (to WORKDIR/report.html unless `path` says otherwise) and return where it is.

    Args:
        reload_seconds: how often a browser loads the page again; 0: never.

    Raises:
        UserError: the workdir has nothing to report on, or a damaged file.
    """
    work = read(Path(workdir))
    path = work.path / "report.html" if path is None else Path(path)
    part = path.with_name(path.name + ".part")
    part.write_text(
        render(work, reload_seconds=reload_seconds), encoding="utf-8", errors="replace"
    )  # half surrogates are no characters
    os.replace(part, path)
    return path


def render(work: Workdir, *, reload_seconds: int = 0) -> str:
    """The report as one HTML document that needs nothing else: the result, pictures, answers, curves, tables, and targets last."""
    everything = (
        warnings.warning_section(work),
        lead.picture_section(work),
        comparison.comparison_section(work),
        samples.sample_section(work),
        samples.same_prompts_section(work),
        curves.constraint_section(work),
        curves.ppo_section(work),
        curves.supervised_section(work),
        results.histogram_section(work),
        guarded.guard_section(work),
        calibration.calibration_section(work),
        results.policy_section(work),
        results.quadrant_section(work),
        samples.facts_section(work),
        results.numbers_section(work),
        results.target_section(work),
    )
    sections = [section for section in everything if section.body]
    missing = [f"{section.title}: {section.absent}" for section in everything if not section.body and section.absent]
    if missing:
        sections.append(page.Section("absent", "Not in this workdir", page.bullets(missing)))
    name = work.path.resolve().name
    result = lead.sentence(work)
    top = page.paragraph(result, "lead") if result else ""
    top += page.paragraph(
        "More helpful while harm stays under a budget: maximise E[R] − β KL subject to E[C] ≤ d. "
        "Cost above 0 means unsafe, everywhere.",
        "dim",
    )
    return page.page(f"{TITLE}: {name}", top, sections, samples.attribution(work), reload_seconds=reload_seconds)
