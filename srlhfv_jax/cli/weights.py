"""`srlhfv weights merge|patch|units|diagnose`: interventions on the weights of policies that you have, and looks into them. Nothing is
trained.

srlhfv weights merge --from=A --to=B --q=0.25,0.5,0.75 --out=DIR
    policies between two, (1 - q) A + q B number by number; an export each, in DIR/q0.25 and so on

srlhfv weights patch --base=A --safety=B --utility=C --data=PAIRS --out=DIR
    the base with parts of two policies that were trained from it on the same harmful answers

srlhfv weights units --policy=A --safe=ROWS --useful=ROWS --out=FILE
    which neurons and heads serve safety, and which serve use; config.optimizer.frozen_units=FILE keeps the first as they are

srlhfv weights diagnose --before=A --after=B --safe=ROWS --unsafe=ROWS --workdir=DIR
    where the change between two lies, layer by layer, and how far apart both hold safe and unsafe prompts
"""

from pathlib import Path

from srlhfv_jax.cli import define, diagnose, patch, switches, units
from srlhfv_jax.errors import UserError, nearest


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("--help", "-h"):
        print(__doc__.strip())
        return
    uses = {"merge": _merge, "patch": patch.main, "units": units.main, "diagnose": diagnose.main}
    if argv[0] not in uses:
        raise UserError(f"srlhfv weights takes {', '.join(uses)}, got {argv[0]!r}; {nearest(argv[0], uses)}")
    uses[argv[0]](argv[1:])


def _merge(argv: list[str]) -> None:
    command = define.define()
    command.text("from", None, f"the policy at q = 0: {define.POLICY}")
    command.text("to", None, "the policy at q = 1, of the same architecture and tokenizer")
    command.text("q", None, "shares of --to, from 0 to 1, such as 0.25,0.5,0.75")
    command.text("out", None, "folder to write below: new, empty, or with merges of the same two")
    values = command.values
    switches.read(values, "weights merge", argv, __doc__)
    switches.required(values, "from", "to", "q", "out")
    from srlhfv_jax.runs import merge

    for folder in merge.merge_policies(values["from"].value, values["to"].value, Path(values.out), values.q):
        print(f"wrote {folder}")
