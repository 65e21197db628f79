"""A trained guard as the functions that `srlhfv moderate`, `generate` and `serve` call: from any thread, and with word of what
it cannot read."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example, Prompt
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard.judge import Guard
from srlhfv_jax.guard.regenerate import CheckInput, CheckOutput, Histories, Pictures, Unreadable
from srlhfv_jax.guard.verdict import GuardVerdict
from srlhfv_jax.runs import inputs


class Checks(NamedTuple):
    """A guard; of a part that it was not trained on, None."""

    input: CheckInput | None
    output: CheckOutput | None
    unreadable: Unreadable


def load(
    path: str, mesh: jax.sharding.Mesh, *, dtype: str, batch_size: int, prompt_length: int = 0, response_length: int = 0
) -> Checks:
    """Load a guard.

    Args:
        prompt_length, response_length: as those of `around`.

    Raises:
        UserError: there is none at `path`.
    """
    guard = Guard.load(path, dtype=dtype, batch_size=batch_size, mesh=mesh)
    return around(guard, mesh, prompt_length=prompt_length, response_length=response_length)


def around(guard: Guard, mesh: jax.sharding.Mesh, *, prompt_length: int = 0, response_length: int = 0) -> Checks:
    """The functions of a guard.

    Args:
        prompt_length, response_length: longer ones (in tokens) are called unreadable; 0: none is too long.
    """

    def check_input(images: Pictures, questions: Sequence[str], histories: Histories | None = None) -> Sequence[GuardVerdict]:
        with jax.set_mesh(mesh):  # the mesh in force is a thread's own
            return guard.check_input(images, questions, histories)

    def check_output(
        images: Pictures, questions: Sequence[str], answers: Sequence[str], histories: Histories | None = None
    ) -> Sequence[GuardVerdict]:
        with jax.set_mesh(mesh):
            return guard.check_output(images, questions, answers, histories)

    def unreadable(texts: Sequence[tuple[Prompt, str | None]]) -> Sequence[Unusable | None]:
        examples = [_example(prompt, response) for prompt, response in texts]
        lengths = dict(system_prompt=guard.system_prompt, prompt_length=prompt_length, response_length=response_length)
        return inputs.unreadable(inputs.sizes(examples, guard.pretrained, guard.max_pixels, **lengths))

    parts = guard.thresholds
    return Checks(check_input if "input" in parts else None, check_output if "output" in parts else None, unreadable)


def check_acts(path: str, checks: Checks, check_input: bool) -> None:
    """Raise UserError where the guard at `path` would check nothing of what a policy is asked and says."""
    if checks.output is None and not check_input:
        raise UserError(f"{path} judges questions only: add --check_input, or train it with 'output' in config.parts")
    if checks.input is None and check_input:
        raise UserError(f"{path} judges answers only: leave out --check_input, or train it with 'input' in config.parts")


def _example(prompt: Prompt, response: str | None) -> Example:
    """An answer without text is read as no answer: it is safe whatever was asked."""
    answers = (response,) if response and response.strip() else ()
    return Example(prompt.images, prompt.question, answers, history=prompt.history)
