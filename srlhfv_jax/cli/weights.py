"""`srlhfv weights merge|patch|units|diagnose`: interventions on the weights of policies that you have, and looks into them. Nothing is
trained.

srlhfv weights merge --from=A --to=B --q=0.25,0.5,0.75 --out=DIR
    policies between two, (1 - q) A + q B number by number; an export each, in DIR/q0.25 and so on

srlhfv weights patch --base=W/sft --safety=W/ascent --utility=W/descent --data=PAIRS --out=DIR
    the base with parts of two policies that were trained from it on the same harmful answers (SafePatching, arXiv 2405.13820); DIR has
    an export, and result.json with the sizes of the sets. The two policies, away from the less safe answers of pairs and towards them:

    srlhfv preference --config=configs/preference.py:unlearn --config.keep_coef=0 --config.forget_coef=1 --workdir=W/ascent \\
      --config.init=W/sft --config.data.path=PAIRS
    srlhfv preference --config=configs/preference.py:unlearn --config.keep_coef=0 --config.forget_coef=-1 --workdir=W/descent \\
      --config.init=W/sft --config.data.path=PAIRS

srlhfv weights units --policy=A --safe=ROWS --useful=ROWS --out=FILE
    which neurons and heads serve safety, and which serve use; config.optimizer.frozen_units=FILE keeps the first as they are

srlhfv weights diagnose --before=A --after=B --safe=ROWS --unsafe=ROWS --workdir=DIR
    where the change between two lies, layer by layer, and how far apart both hold safe and unsafe prompts
"""

import functools
import json
from pathlib import Path

from srlhfv_jax.cli import define, switches
from srlhfv_jax.errors import UserError, nearest
from srlhfv_jax.parallel import host_cpu

POLICY = "a workdir of a stage, an export, or a Hugging Face folder or id"


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("--help", "-h"):
        print(__doc__.strip())
        return
    uses = {"merge": _merge, "patch": _patch, "units": _units, "diagnose": _diagnose}
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


def _patch(argv: list[str]) -> None:
    command = define.define()
    command.text("base", None, f"the policy that both were trained from: {POLICY}")
    command.text("safety", None, "trained from it by gradient ascent on harmful answers")
    command.text("utility", None, "trained from it by gradient descent on the same answers")
    command.text(
        "data", None, "these answers, for the gradient of the scores: rows with one answer, or pairs, whose less safe one is read"
    )
    command.text("out", None, "folder to write to: new or empty")
    command.real("alpha", 1.0, "strength of the safety patch")
    command.real("beta", 1.0, "strength of the utility patch")
    command.real("top_safety", 0.3, "a: share of each kernel's entries in the safety patch's set, by score")
    command.real("top_utility", 0.3, "b: the same of the utility patch")
    command.real("keep", 0.5, "p: probability that an entry of a patch is kept")
    command.switch("rescale", False, "divide the entries that are kept by p")
    command.whole("prompt_length", 0, "longest prompt in tokens (P); 0: that of the data")
    command.whole("response_length", 0, "longest answer in tokens (R); 0: that of the data")
    command.whole("batch_size", 8, "rows at once", 1)
    command.whole("seed", 0, "of the entries that are kept", most=define.SEEDS)
    define.rows(command)
    values = command.values
    switches.read(values, "weights patch", argv, __doc__)
    host_cpu.prepare()
    switches.required(values, "base", "safety", "utility", "data", "out")
    from srlhfv_jax.runs import patch, run

    settings = define.settings(patch.Settings, values)
    patch.check(settings)
    run.command(functools.partial(run.record, patch.run), settings, Path(values.out))
    print(f"wrote {Path(values.out) / 'export'}")
