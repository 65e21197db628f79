"""Record of guard training."""

from collections.abc import Callable
from typing import Any

from srlhfv_jax.config import GuardConfig
from srlhfv_jax.guard import curves
from srlhfv_jax.runs.stage import INIT, Run, Stage


def _guard() -> Run:
    from srlhfv_jax.guard import train

    return train.run


def _objective() -> Callable[[Any, Any], Any]:
    from srlhfv_jax.guard import train

    return train.objective


GUARD = Stage(
    name="guard",
    text="A guard that judges questions and answers: how severe their harm is, and of which kinds.",
    settings=GuardConfig,
    needed={"init": INIT, "data.path": "rows with safety labels"},
    example="--workdir=W/guard --config.init=W/sft --config.data.path=BEAVERTAILS_V --config.calibration=HELD_OUT",
    load=_guard,
    objective=_objective,
    curves=curves.GUARD,
)
