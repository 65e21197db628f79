"""`srlhfv weights merge`: policies between two checkpoints, (1 - q) A + q B number by number; an export each, in DIR/q0.25 and so on.

srlhfv weights merge --from=A --to=B --q=0.25,0.5,0.75 --out=DIR
"""

from pathlib import Path

from srlhfv_jax.cli import define, switches
from srlhfv_jax.errors import UserError, nearest


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("--help", "-h"):
        print(__doc__.strip())
        return
    uses = {"merge": _merge}
    if argv[0] not in uses:
        raise UserError(f"srlhfv weights takes {', '.join(uses)}, got {argv[0]!r}; {nearest(argv[0], uses)}")
    uses[argv[0]](argv[1:])


def _merge(argv: list[str]) -> None:
    command = define.define()
    command.text("from", None, "the policy at q = 0: a workdir of a stage, an export, or a Hugging Face folder or id")
    command.text("to", None, "the policy at q = 1, of the same architecture and tokenizer")
    command.text("q", None, "shares of --to, from 0 to 1, such as 0.25,0.5,0.75")
    command.text("out", None, "folder to write below: new, empty, or with merges of the same two")
    values = command.values
    switches.read(values, "weights merge", argv, __doc__)
    switches.required(values, "from", "to", "q", "out")
    from srlhfv_jax.runs import merge

    for folder in merge.merge_policies(values["from"].value, values["to"].value, Path(values.out), values.q):
        print(f"wrote {folder}")
