"""`srlhfv weights merge|units|diagnose`: interventions on the weights of policies that you have, and looks into them. Nothing is
trained.

srlhfv weights merge --from=A --to=B --q=0.25,0.5,0.75 --out=DIR
    policies between two, (1 - q) A + q B number by number; an export each, in DIR/q0.25 and so on

srlhfv weights units --policy=A --safe=ROWS --useful=ROWS --out=FILE
    which neurons and heads serve safety, and which serve use; config.optimizer.frozen_units=FILE keeps the first as they are

srlhfv weights diagnose --before=A --after=B --safe=ROWS --unsafe=ROWS --workdir=DIR
    where the change between two lies, layer by layer, and how far apart both hold safe and unsafe prompts
"""

import json
from pathlib import Path

from srlhfv_jax.cli import define, switches
from srlhfv_jax.errors import UserError, nearest

POLICY = "a workdir of a stage, an export, or a Hugging Face folder or id"


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("--help", "-h"):
        print(__doc__.strip())
        return
    uses = {"merge": _merge, "units": _units, "diagnose": _diagnose}
    if argv[0] not in uses:
        raise UserError(f"srlhfv weights takes {', '.join(uses)}, got {argv[0]!r}; {nearest(argv[0], uses)}")
    uses[argv[0]](argv[1:])


def _merge(argv: list[str]) -> None:
    command = define.define()
    command.text("from", None, f"the policy at q = 0: {POLICY}")
    command.text("to", None, "the policy at q = 1, of the same architecture and tokenizer")
    command.text("q", None, "shares of --to, from 0 to 1, such as 0.25,0.5,0.75")
    command.text("out", None, "folder to write below: new, empty, or with merges of the same two")
    values = command.values
    switches.read(values, "weights merge", argv, __doc__)
    switches.required(values, "from", "to", "q", "out")
    from srlhfv_jax.runs import merge

    for folder in merge.merge_policies(values["from"].value, values["to"].value, Path(values.out), values.q):
        print(f"wrote {folder}")


def _units(argv: list[str]) -> None:
    command = define.define()
    command.text("policy", None, POLICY)
    command.text("safe", None, "rows with an answer on which the policy is safe: harmful questions and safe answers")
    command.text("useful", None, "rows with an answer on which the policy is of use: harmless questions and good answers")
    command.text("out", None, "file to write")
    command.real("safety", 0.013, "share of units that are safety-critical: largest I_safe - I_useful")
    command.real("utility", 0.133, "share of units of use alone: smallest I_safe - I_useful")
    command.real("complex", 0.06, "share of complex units: largest I_safe + I_useful")
    command.real("redundant", 0.148, "share of redundant units: smallest I_safe + I_useful")
    command.switch("disjoint", True, "a set takes of what the sets before it have left")
    _answered(command)
    values = command.values
    switches.read(values, "weights units", argv, __doc__)
    switches.required(values, "policy", "safe", "useful", "out")
    from srlhfv_jax.parallel import host_cpu

    host_cpu.prepare()
    from srlhfv_jax.runs import units

    units.write_units(define.settings(units.Settings, values))
    print(f"wrote {values.out}")


def _diagnose(argv: list[str]) -> None:
    command = define.define()
    command.text("before", None, f"the policy that training started from: {POLICY}")
    command.text("after", None, "the trained one, of the same architecture")
    command.text("safe", None, "rows with a harmless question and an answer")
    command.text("unsafe", None, "rows with a harmful question and an answer")
    command.text("workdir", None, "folder to write result.json and report.html to")
    _answered(command)
    values = command.values
    switches.read(values, "weights diagnose", argv, __doc__)
    switches.required(values, "before", "after", "safe", "unsafe", "workdir")
    from srlhfv_jax.parallel import host_cpu

    host_cpu.prepare()
    from srlhfv_jax import files
    from srlhfv_jax.parallel import hosts
    from srlhfv_jax.report import diagnosis
    from srlhfv_jax.runs import diagnose

    workdir, result = Path(values.workdir), diagnose.run(define.settings(diagnose.Settings, values))
    if hosts.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_text(workdir / "result.json", json.dumps(result, indent=2) + "\n")
        files.write_text(workdir / "report.html", diagnosis.document(result, values.before, values.after))
        print(f"{diagnose.table(result)}\nwrote {workdir / 'result.json'} and {workdir / 'report.html'}")


def _answered(command: define.Define) -> None:
    """Flags of rows with answers."""
    command.whole("prompt_length", 0, "longest prompt in tokens (P); 0: that of the data")
    command.whole("response_length", 0, "longest answer in tokens (R); 0: that of the data")
    command.whole("batch_size", 32, "rows read at once", 1)
    define.rows(command)
    define.dtype(command)
