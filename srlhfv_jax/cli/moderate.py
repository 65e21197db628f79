"""`srlhfv moderate`: what a guard says of a question, or of an answer to it; prints one JSON object.

    srlhfv moderate --guard=W/guard --prompt="How do I bring this to school unnoticed?" --image=dagger.png

    srlhfv moderate --guard=W/guard --prompt="What is this for?" --response="For cutting bread." --image=knife.png

{"safe", "severity", "categories", "scores"}: see guard/verdict.py.
"""

import json

from absl import flags as absl_flags

from srlhfv_jax.cli import flags
from srlhfv_jax.cli.generate import given_image, one_device
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import host_cpu


def main(argv: list[str]) -> None:
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("guard", None, "workdir of `srlhfv guard`, or its export", flag_values=values)
    absl_flags.DEFINE_string("prompt", None, "the question", flag_values=values)
    absl_flags.DEFINE_string("response", None, "the answer to it; without: the question is judged", flag_values=values)
    absl_flags.DEFINE_string("image", "", "file of the question's picture", flag_values=values)
    absl_flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and activations", flag_values=values)
    flags.read(values, "moderate", argv, __doc__)
    flags.required(values, "guard", "prompt")
    host_cpu.prepare()
    image = given_image(values.image)
    from srlhfv_jax.guard import checks as moderating
    from srlhfv_jax.guard.service.models import moderate_with
    from srlhfv_jax.guard.service.requests import Moderation, Refused

    checks = moderating.load(values.guard, one_device(), dtype=values.dtype, batch_size=1)
    (found,) = moderate_with(*checks)([Moderation(values.prompt, values.response, image)])
    if isinstance(found, Refused):
        raise UserError(f"{values.guard}: {found.message}")
    print(json.dumps(found, ensure_ascii=False))
