"""Warnings that PPO-Lagrangian gave while it ran."""

from srlhfv_jax.ppo_lag import alarms
from srlhfv_jax.report import page
from srlhfv_jax.report.page import Section
from srlhfv_jax.report.workdir import Workdir


def warning_section(work: Workdir) -> Section:
    """Every alarm of every stage, with its iteration; empty where there was none."""
    lines = [
        f"{stage.name}, iteration {step:g}: {text}."
        for stage in work.stages
        for key, step in stage.result.items()
        if isinstance(step, (int, float))
        and (text := alarms.text(key.removeprefix(alarms.PREFIX)))
        and key.startswith(alarms.PREFIX)
    ]
    return Section("warnings", "Warnings", page.bullets(lines) if lines else "")
