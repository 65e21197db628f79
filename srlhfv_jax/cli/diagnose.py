"""`srlhfv weights diagnose`: where the change between two policies lies, layer by layer, and how far apart both hold safe and unsafe
prompts.

    srlhfv weights diagnose --before=W/sft --after=W/ppo_lag --safe=harmless.parquet --unsafe=harmful.parquet --workdir=W/diagnose

Prints a table, and writes result.json and report.html to the workdir. docs/weights.md says what the numbers are.
"""

from pathlib import Path

from srlhfv_jax.cli import define, switches, units
from srlhfv_jax.parallel import host_cpu


def main(argv: list[str]) -> None:
    command = define.define()
    command.text("before", None, f"the policy that training started from: {define.POLICY}")
    command.text("after", None, "the trained one, of the same architecture")
    command.text("safe", None, "rows with a harmless question and an answer")
    command.text("unsafe", None, "rows with a harmful question and an answer")
    command.text("workdir", None, "folder to write result.json and report.html to")
    units.answered(command)
    values = command.values
    switches.read(values, "weights diagnose", argv, __doc__)
    switches.required(values, "before", "after", "safe", "unsafe", "workdir")
    host_cpu.prepare()
    from srlhfv_jax.report import diagnosis
    from srlhfv_jax.runs import diagnose

    result = diagnose.run(define.settings(diagnose.Settings, values))
    diagnosis.write(Path(values.workdir), result, values.before, values.after)
    print(diagnose.table(result))
    print(f"wrote {values.workdir}/result.json and {values.workdir}/report.html")
