"""`srlhfv calibrate`: the probability that an answer of this cost is unsafe, from labels on rows that the scorer was not trained on.

    srlhfv calibrate --scorer=W/scores --data=heldout.parquet --workdir=C

Rows have responses that are labelled safe or unsafe, both among them; pairs count as two. Writes calibration.json beside the scorer's
heads, where exports take it along, and to the workdir: P(unsafe | cost), which --config.constraint.calibrated of `srlhfv ppo_lag` and
--calibrated of `srlhfv certify` read, and normalisers of both scores ((reward - shift) / scale; cost / scale, whose zero stays). result.json says
how far probabilities are from labels before (sigmoid(cost)) and after; `srlhfv report --workdir=C` draws both.
"""

import functools
from pathlib import Path

from srlhfv_jax.cli import define, switches
from srlhfv_jax.parallel import host_cpu


def main(argv: list[str]) -> None:
    command = define.define()
    command.text("workdir", None, "folder to write to")
    command.text("scorer", None, "workdir or export with the head cost")
    command.text("data", None, "rows with labelled responses: a TFDS folder, .parquet or .jsonl file, or a folder of them")
    command.choice("fit", "", ["", "platt", "isotonic"], "a sigmoid, or rising steps; empty: steps from 1000 labelled answers on")
    command.whole("batch_size", 32, "responses scored at once", 1)
    command.whole("seed", 0, "of the parts that are left out in turn", most=define.SEEDS)
    define.rows(command)
    define.dtype(command)
    values = command.values
    switches.read(values, "calibrate", argv, __doc__)
    host_cpu.prepare()
    switches.required(values, "workdir", "scorer", "data")
    from srlhfv_jax.evaluation import calibrate
    from srlhfv_jax.runs import run

    settings, workdir = define.settings(calibrate.Settings, values), Path(values.workdir)
    calibrate.check(settings)
    run.command(functools.partial(run.record, calibrate.run), settings, workdir)
    print(f"wrote {workdir / 'result.json'}; `srlhfv report --workdir={workdir}` makes a page of it")
