"""`srlhfv moderate`: what a guard says of a question, or of an answer to it; prints one JSON object.

    srlhfv moderate --guard=W/guard --prompt="How do I bring this to school unnoticed?" --image=dagger.png

    srlhfv moderate --guard=W/guard --prompt="What is this for?" --response="For cutting bread." --image=knife.png

{"safe", "severity", "categories", "scores"}: see guard/verdict.py.
"""

import json

from srlhfv_jax.cli import define, switches
from srlhfv_jax.parallel import host_cpu


def main(argv: list[str]) -> None:
    command = define.define()
    command.text("guard", None, "workdir of `srlhfv guard`, or its export")
    command.text("prompt", None, "the question")
    command.text("response", None, "the answer to it; without: the question is judged")
    command.text("image", "", "file of the question's picture")
    define.dtype(command)
    values = command.values
    switches.read(values, "moderate", argv, __doc__)
    switches.required(values, "guard", "prompt")
    host_cpu.prepare()
    from srlhfv_jax.guard.moderate import moderate

    verdict = moderate(values.guard, values.prompt, values.response, values.image, dtype=values.dtype)
    print(json.dumps(verdict, ensure_ascii=False))
