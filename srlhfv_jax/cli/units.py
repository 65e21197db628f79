"""`srlhfv weights units`: which neurons and heads of a policy serve safety, and which serve use.

    srlhfv weights units --policy=W/ppo_lag --safe=harmful.parquet --useful=harmless.parquet --out=W/units.safetensors

Scores every unit on both sets of rows, prints how many are safety-critical, of use, complex and redundant, and writes a file that
config.optimizer.frozen_units and .only_units take. docs/weights.md says what a unit is.
"""

from srlhfv_jax.cli import define, switches
from srlhfv_jax.parallel import host_cpu


def main(argv: list[str]) -> None:
    command = define.define()
    command.text("policy", None, define.POLICY)
    command.text("safe", None, "rows with an answer on which the policy is safe: harmful questions and safe answers")
    command.text("useful", None, "rows with an answer on which the policy is of use: harmless questions and good answers")
    command.text("out", None, "file to write")
    command.real("safety", 0.013, "share of units that are safety-critical: largest I_safe - I_useful")
    command.real("utility", 0.133, "share of units of use alone: smallest I_safe - I_useful")
    command.real("complex", 0.06, "share of complex units: largest I_safe + I_useful")
    command.real("redundant", 0.148, "share of redundant units: smallest I_safe + I_useful")
    command.switch("disjoint", True, "a set takes of what the sets before it have left")
    answered(command)
    values = command.values
    switches.read(values, "weights units", argv, __doc__)
    switches.required(values, "policy", "safe", "useful", "out")
    host_cpu.prepare()
    from srlhfv_jax.runs import units

    units.write_units(define.settings(units.Settings, values))
    print(f"wrote {values.out}")


def answered(command: define.Define) -> None:
    """Flags of rows with answers that are read once: those of `runs.answered.AnsweredSettings`."""
    command.whole("prompt_length", 0, "longest prompt in tokens (P); 0: that of the data")
    command.whole("response_length", 0, "longest answer in tokens (R); 0: that of the data")
    command.whole("batch_size", 32, "rows read at once", 1)
    define.rows(command)
    define.dtype(command)
