"""`srlhfv revise`: a policy whose activations are revised while it answers; nothing is trained (Internal Activation Revision, AAAI 2025).

    srlhfv revise --policy=W/sft --data=PAIRS --site=heads --strength=2 --top=16 --out=W/revised

Reads pairs of which one answer is labelled safe and the other unsafe, and takes directions from the policy's activations at the last
token of each. --site=heads moves the outputs of the --top heads that tell safe from unsafe answers best, by --strength standard
deviations; --site=layer adds --strength times the difference of the means to the stream after the --top best layers. --out has the
policy's own weights, and the revision beside them, which generate, evaluate and serve read. docs/weights.md says more.
"""

from srlhfv_jax.cli import define, switches
from srlhfv_jax.parallel import host_cpu


def main(argv: list[str]) -> None:
    command = define.define()
    command.text("policy", None, "workdir of a stage, an export, or a Hugging Face folder or id")
    command.text("data", None, "pairs of answers with labels safe and unsafe")
    command.choice("site", "heads", ["heads", "layer"], "what is revised")
    command.real("strength", None, "how far; 0: not at all")
    command.whole("top", None, "heads, or layers, that are revised: the best by a probe", 1)
    command.text("out", None, "folder to write, which must not exist yet")
    command.whole("prompt_length", 0, "longest prompt in tokens (P); 0: that of the data")
    command.whole("response_length", 0, "longest answer in tokens (R); 0: that of the data")
    command.whole("batch_size", 8, "pairs read at once", 1)
    define.rows(command)
    define.dtype(command)
    values = command.values
    switches.read(values, "revise", argv, __doc__)
    host_cpu.prepare()
    switches.required(values, "policy", "data", "strength", "top", "out")
    from srlhfv_jax.runs import revise

    found = revise.run(define.settings(revise.Settings, values))
    for name, value in found.items():
        print(f"{name}: {value:g}")
    print(f"wrote {values.out}")
