"""`srlhfv moderate`: the guard's verdict on one question, or on one answer to it."""

from typing import Any

from srlhfv_jax.data import images
from srlhfv_jax.data.rows import Prompt
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import checks as guard_checks
from srlhfv_jax.guard.verdict import verdict_json
from srlhfv_jax.parallel.mesh import one_device


def moderate(guard: str, prompt: str, response: str | None, image: str, *, dtype: str) -> dict[str, Any]:
    """{"safe", "severity", "categories", "scores"} of the response, or without one of the prompt.

    Args:
        guard: workdir of `srlhfv guard`, or its export.
        image: file of the question's picture; "": none.

    Raises:
        UserError: no such guard or picture, a text that the guard cannot read, or one that it was not trained to judge.
    """
    picture = images.read_given(image, "--image")
    checks = guard_checks.load(guard, one_device(), dtype=dtype, batch_size=1)
    pictures = () if picture is None else (picture,)
    (reason,) = checks.unreadable([(Prompt(pictures, prompt), response)])
    if reason is not None:
        raise UserError(f"{guard}: {reason}")
    if response is None:
        if checks.input is None:
            raise UserError(f"{guard}: this guard judges answers only: give a response")
        (verdict,) = checks.input([pictures], [prompt])
    else:
        if checks.output is None:
            raise UserError(f"{guard}: this guard judges questions only: leave out the response")
        (verdict,) = checks.output([pictures], [prompt], [response])
    return verdict_json(verdict)
