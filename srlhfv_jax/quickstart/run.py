"""`srlhfv quickstart`: the pipeline in a workdir that is its own, then its targets and its report."""

from pathlib import Path

from srlhfv_jax.checkpoint import lock
from srlhfv_jax.config import QuickstartConfig, to_dict
from srlhfv_jax.parallel import hosts
from srlhfv_jax.quickstart import compare, pipeline
from srlhfv_jax.report import targets
from srlhfv_jax.report.build import write_report
from srlhfv_jax.runs import run as runs
from srlhfv_jax.training.metrics import write_result

MARKS = {True: "met", False: "MISSED", None: "not measured"}


def run(settings: QuickstartConfig, workdir: Path, *, sweep: bool, methods: str = "") -> None:
    """Run the pipeline, or go on with it; print the targets and write the report.

    Args:
        methods: others to compare PPO-Lagrangian with (`compare.chosen`).

    Raises:
        UserError: the workdir was started with other settings, or another process works in it; a method is not known.
    """
    hosts.initialize()
    names = compare.chosen(methods)
    with lock.held(workdir):
        runs.check_unchanged(settings, workdir)
        result = pipeline.run(settings, workdir, sweep=sweep)
        if compared := compare.with_done(names, workdir):
            result |= compare.run(pipeline.Pipeline(settings, workdir), compared, result)
            result["ppo_lag.seconds"] = sum(result[f"seconds.{stage}"] for stage in ("round1_scores", "round1_ppo_lag"))
            write_result(workdir, result)
        if hosts.process_index() == 0:
            _close(settings, workdir, result)


def _close(settings: QuickstartConfig, workdir: Path, result: dict) -> None:
    short = targets.too_short(to_dict(settings))
    if short:
        print(f"{targets.TOO_SHORT} No target is checked.")
    for outcome in () if short else targets.check(result):
        aim = f"  ({outcome.aim})" if outcome.aim else ""
        print(f"{MARKS[outcome.met]:<13}{outcome.shown:<24}{outcome.text}{aim}")
    print(f"wrote {workdir / 'result.json'} and {write_report(workdir)}")
