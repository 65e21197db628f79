"""`srlhfv quickstart [--workdir=W] [--seed=0]`: the whole pipeline on the embedded task "Look before you answer", on a CPU.

Draws the pictures, trains SFT, reward and cost heads and PPO-Lagrangian (and PPO without the constraint, to compare), judges them
by the task's oracle, prints the targets, and writes W/result.json and W/report.html. Stopped at any moment, the same command goes
on from there. --config=configs/quickstart.py:short is the same road in a minute or two, too short to learn anything.
With --config=configs/quickstart.py:adapters, or :activated, all after SFT is trained as adapters over the SFT model.
"""

from pathlib import Path

from absl import flags as absl_flags

from srlhfv_jax.cli import flags
from srlhfv_jax.config import QuickstartConfig, to_dict, unread
from srlhfv_jax.parallel import host_cpu
from srlhfv_jax.parsing import parse

MARKS = {True: "met", False: "MISSED", None: "not measured"}


def main(argv: list[str]) -> None:
    host_cpu.prepare()
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("workdir", "runs/quickstart", flags.WORKDIR, flag_values=values)
    absl_flags.DEFINE_integer("seed", None, "seed of everything; default: config.seed", flag_values=values)
    absl_flags.DEFINE_integer(
        "rounds", None, "rounds of sample, annotate, refit, fine-tune; default: config.rounds", lower_bound=1, flag_values=values
    )
    absl_flags.DEFINE_bool("sweep", False, "also train the fixed multipliers of config.sweep", flag_values=values)
    found, changed = flags.read_with_config("quickstart", values, argv, __doc__, QuickstartConfig)
    for name in ("seed", "rounds"):
        if values[name].value is not None:
            found[name] = values[name].value
    settings, workdir = parse(QuickstartConfig, found), Path(values.workdir)
    unread.check_changed(settings, changed)
    from srlhfv_jax.checkpoint import lock
    from srlhfv_jax.parallel import hosts

    hosts.initialize()
    with lock.held(workdir):
        _run(settings, workdir, values.sweep)


def _run(settings: QuickstartConfig, workdir: Path, sweep: bool) -> None:
    from srlhfv_jax.runs import run

    run.check_unchanged(settings, workdir)
    from srlhfv_jax.parallel import hosts
    from srlhfv_jax.quickstart import pipeline
    from srlhfv_jax.report import targets
    from srlhfv_jax.report.build import write_report
    from srlhfv_jax.training import compiles

    compiles.keep(workdir / "compiled")  # later rounds, and a run that goes on, compile nothing twice
    result = pipeline.run(settings, workdir, sweep=sweep)
    if hosts.process_index() > 0:
        return
    short = targets.too_short(to_dict(settings))
    if short:
        print(f"{targets.TOO_SHORT} No target is checked.")
    for outcome in () if short else targets.check(result):
        aim = f"  ({outcome.aim})" if outcome.aim else ""
        print(f"{MARKS[outcome.met]:<13}{outcome.shown:<24}{outcome.text}{aim}")
    print(f"wrote {workdir / 'result.json'} and {write_report(workdir)}")
