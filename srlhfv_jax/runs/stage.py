"""Record of a stage, kept in its room: what its command, the report and `srlhfv plan` know of it.

No jax is imported before the stage runs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srlhfv_jax.data.rows import Prompt
from srlhfv_jax.errors import UserError
from srlhfv_jax.runs.curves import Curves

Run = Callable[[Any, Path], dict[str, Any]]  # (settings, workdir) -> final numbers
# (prompts, answers) -> what a guard says of each answer, by the name of the column; all processes call it together
Verdicts = Callable[[Sequence[Prompt], Sequence[str]], list[Mapping[str, Any]]]
LoadGuard = Callable[[Any, Any], Verdicts]  # (settings, mesh) -> the verdicts of the guard that `settings.log.guard` names

INIT = "a Hugging Face folder, an export, or the workdir of an earlier stage"


class Stage(NamedTuple):
    """One stage. Its presets are those of configs/NAME.py."""

    name: str
    text: str  # what it does, in a sentence or a few
    settings: type  # of config/
    needed: Mapping[str, str]  # setting that a config file leaves empty and the user gives, such as "data.path" -> its meaning
    example: str  # flags of a whole command
    load: Callable[[], Run]  # imports the stage
    curves: Curves  # of its metrics in the report
    # imports the function (model's config, settings) -> `supervised.train.Objective` that plan compiles; None: plan knows the stage
    objective: Callable[[], Callable[[Any, Any], Any]] | None = None
    check: Callable[[Any], None] = lambda settings: None  # what else can be refused before that


def given(value: str, path: str, meaning: str) -> None:
    """Raise UserError where a config leaves a path empty that this command cannot do without."""
    if not value:
        raise UserError(f"{path} is empty: give {meaning} (--{path}=...)")
