"""`srlhfv report --workdir=W`: one self-contained W/report.html of a run, whole pipeline or single stage.

Targets and results, multiplier and cost against the budget, reward-cost plane, KL, lengths, losses, sample answers with their
pictures. The page needs no network and no other file. With --watch it is written again while a run goes on, and loads itself
anew, until Ctrl-C.
"""

from pathlib import Path

from absl import flags as absl_flags

from srlhfv_jax.cli import switches


def main(argv: list[str]) -> None:
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("workdir", None, "folder of the run to report on", flag_values=values)
    absl_flags.DEFINE_string("output", "", "file to write; empty: WORKDIR/report.html", flag_values=values)
    absl_flags.DEFINE_bool("watch", False, "write it again whenever the run has written something", flag_values=values)
    switches.read(values, "report", argv, __doc__)
    switches.required(values, "workdir")
    workdir, output = Path(values.workdir), Path(values.output) if values.output else None
    if values.watch:
        from srlhfv_jax.report.watch import watch

        watch(workdir, output)
    from srlhfv_jax.report.build import write_report

    print(f"wrote {write_report(workdir, output)}")
