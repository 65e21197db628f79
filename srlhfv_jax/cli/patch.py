"""`srlhfv weights patch`: a policy with parts of two others, trained from it on the same harmful answers (SafePatching, arXiv 2405.13820).

srlhfv weights patch --base=W/sft --safety=W/ascent --utility=W/descent --data=PAIRS --out=DIR

DIR has an export, and result.json with the sizes of the sets. The two policies, away from the less safe answers of pairs and towards
them; give pairs whose less safe answer is unsafe:

srlhfv preference --config=configs/preference.py:unlearn --config.keep_coef=0 --config.forget_coef=1 --workdir=W/ascent \\
  --config.init=W/sft --config.data.path=PAIRS
srlhfv preference --config=configs/preference.py:unlearn --config.keep_coef=0 --config.forget_coef=-1 --workdir=W/descent \\
  --config.init=W/sft --config.data.path=PAIRS
"""

import functools
from pathlib import Path

from srlhfv_jax.cli import define, switches
from srlhfv_jax.parallel import host_cpu


def main(argv: list[str]) -> None:
    command = define.define()
    command.text("base", None, f"the policy that both were trained from: {define.POLICY}")
    command.text("safety", None, "trained from it by gradient ascent on harmful answers")
    command.text("utility", None, "trained from it by gradient descent on the same answers")
    command.text(
        "data", None, "these answers, for the gradient of the scores: rows with one answer, or pairs, whose less safe one is read"
    )
    command.text("out", None, "folder to write to: new or empty")
    command.real("alpha", 2.0, "strength of the safety patch")
    command.real("beta", 2.0, "strength of the utility patch")
    command.real("top_safety", 0.5, "a: share of each kernel's entries in the safety patch's set, by score")
    command.real("top_utility", 0.5, "b: the same of the utility patch")
    command.real("keep", 0.5, "p: probability that an entry of a patch is kept")
    command.switch("rescale", False, "divide the entries that are kept by p")
    command.whole("prompt_length", 0, "longest prompt in tokens (P); 0: that of the data")
    command.whole("response_length", 0, "longest answer in tokens (R); 0: that of the data")
    command.whole("batch_size", 8, "rows at once", 1)
    command.whole("seed", 0, "of the entries that are kept", most=define.SEEDS)
    define.rows(command)
    values = command.values
    switches.read(values, "weights patch", argv, __doc__)
    switches.required(values, "base", "safety", "utility", "data", "out")
    host_cpu.prepare()
    from srlhfv_jax.runs import patch, run

    settings = define.settings(patch.Settings, values)
    patch.check(settings)
    run.command(functools.partial(run.record, patch.run), settings, Path(values.out))
    print(f"wrote {Path(values.out) / 'export'}")
