"""A guard's verdicts on the answers that a run of sft or ppo_lag samples as it goes on (evaluation/same_prompts.py).

Columns: `guard.unsafe`, P(severity > safe); `guard.severity`, "safe" where that is at or below the guard's threshold; `guard.categories`,
the likeliest first, with commas between them. Of an answer that the guard cannot read the reason alone: `guard.unread`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from srlhfv_jax.config import PPOLagConfig, SFTConfig
from srlhfv_jax.data.rows import Prompt, asked, histories
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import checks
from srlhfv_jax.guard.verdict import GuardVerdict
from srlhfv_jax.parallel.mesh import row_shards
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.runs.stage import Run, Verdicts

SETTING = "config.log.guard"
LARGEST = 32  # rows that are judged together, where the mesh needs no more


def with_guard(run: Run, settings: Any) -> Run:
    """The run of a stage, with the guard that its settings name, if any: stages themselves must not import this room."""
    samples = isinstance(settings, (SFTConfig, PPOLagConfig)) and settings.log.guard
    return functools.partial(run, load_guard=load) if samples else run


def load(settings: SFTConfig | PPOLagConfig, mesh: Mesh) -> Verdicts:
    """The verdicts of the guard of `log.guard`, which lies on the run's mesh in the run's dtype.

    Raises:
        UserError: there is none, or it judges questions alone.
    """
    path, shards = settings.log.guard, row_shards(mesh)
    checkpoints.check_checkpoint(path, SETTING)
    rows = -(-min(settings.log.samples, LARGEST) // shards) * shards
    guard = checks.load(path, mesh, dtype=settings.model.dtype, batch_size=rows)
    if guard.output is None:
        raise UserError(f"{SETTING}={path} judges questions only: give a guard that was trained with 'output' in config.parts")
    return functools.partial(verdicts, guard)


def verdicts(guard: checks.Checks, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Mapping[str, Any]]:
    """Columns of each answer to its prompt: the verdict, or why the guard cannot read them."""
    reasons = guard.unreadable(list(zip(prompts, answers, strict=True)))
    some = [row for row, reason in enumerate(reasons) if reason is None]
    read, texts = [prompts[row] for row in some], [answers[row] for row in some]
    judged = iter(guard.output(*asked(read), texts, *histories(read)) if read else ())
    return [columns(next(judged)) if reason is None else {"guard.unread": reason.reason} for reason in reasons]


def columns(verdict: GuardVerdict) -> dict[str, Any]:
    """A verdict as cells of a table."""
    return {
        "guard.unsafe": verdict.scores["unsafe"],
        "guard.severity": verdict.severity,
        "guard.categories": ", ".join(verdict.categories),
    }
