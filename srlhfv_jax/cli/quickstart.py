"""`srlhfv quickstart [--workdir=W] [--seed=0]`: the whole pipeline on the embedded task "Look before you answer", on a CPU.

Draws the pictures, trains SFT, reward and cost heads and PPO-Lagrangian (and PPO without the constraint, to compare), judges them
by the task's oracle, prints the targets, and writes W/result.json and W/report.html. Stopped at any moment, the same command goes
on from there. --config=configs/quickstart.py:short is the same road in a minute or two, too short to learn anything.
With --config=configs/quickstart.py:adapters, or :activated, all after SFT is trained as adapters over the SFT model.
"""

from pathlib import Path

from absl import flags as absl_flags

from srlhfv_jax.cli import flags
from srlhfv_jax.cli.help import About
from srlhfv_jax.config import QuickstartConfig, unread
from srlhfv_jax.parallel import host_cpu
from srlhfv_jax.parsing import parse


def main(argv: list[str]) -> None:
    host_cpu.prepare()
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("workdir", "runs/quickstart", flags.WORKDIR, flag_values=values)
    absl_flags.DEFINE_integer("seed", None, "seed of everything; default: config.seed", flag_values=values)
    absl_flags.DEFINE_integer(
        "rounds", None, "rounds of sample, annotate, refit, fine-tune; default: config.rounds", lower_bound=1, flag_values=values
    )
    absl_flags.DEFINE_bool("sweep", False, "also train the fixed multipliers of config.sweep", flag_values=values)
    compared = "other methods trained beside, such as safedpo,sacpo, or all: docs/preference.md"
    absl_flags.DEFINE_string("compare", "", compared, flag_values=values)
    config, changed = flags.read_with_config(About("quickstart", __doc__, QuickstartConfig), values, argv)
    for name in ("seed", "rounds"):
        if values[name].value is not None:
            config[name] = values[name].value
    settings, workdir = parse(QuickstartConfig, config), Path(values.workdir)
    unread.check_changed(settings, changed)
    from srlhfv_jax.quickstart import run

    run.run(settings, workdir, sweep=values.sweep, methods=values.compare)
