"""`srlhfv quickstart --compare=NAME,...`: other ways to make the supervised policy safer, from the same policy, pairs and scorer, as the
oracle judges them.

Each trains in WORKDIR/compare.NAME and answers the test prompts with the keys that all policies have. Which there are, with their
settings, stands in methods.py.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srlhfv_jax.errors import UserError, nearest
from srlhfv_jax.quickstart import kinds
from srlhfv_jax.quickstart.kinds import SHARED
from srlhfv_jax.quickstart.methods import INTERVENTIONS, METHODS, trainer
from srlhfv_jax.quickstart.pipeline import Pipeline

ALL = "all"
TOLD = ("multiplier", "budget")  # numbers of the steps before training that are results too


def chosen(text: str) -> tuple[str, ...]:
    """The methods and interventions that --compare names, with those that they start from, in the order in which they run.

    Raises:
        UserError: one is not known, or there is none between its commas.
    """
    known = (*METHODS, *INTERVENTIONS)
    names = set(known) if text == ALL else {name for name in text.split(",") if name}
    if text and not names:
        raise UserError(f"--compare={text!r} names no method: give {ALL}, or some of {', '.join(known)}")
    for name in sorted(names - set(known)):
        raise UserError(f"--compare has {name!r}, which is no method: {nearest(name, (ALL, *known))}")
    names |= {METHODS[name].start for name in names & METHODS.keys() if METHODS[name].start}
    return tuple(name for name in known if name in names)


def with_done(names: Sequence[str], workdir: Path) -> tuple[str, ...]:
    """These methods, and those that are done in a workdir: what was measured stays in its result."""
    last = {name: f"compare.{name}.judged" for name in METHODS} | {name: f"compare.{name}" for name in INTERVENTIONS}
    return tuple(name for name, step in last.items() if name in names or (workdir / step / "done.json").exists())


def run(pipeline: Pipeline, names: Sequence[str], quickstart: Mapping[str, Any]) -> dict[str, float]:
    """Train and judge each method that is not done; gives `NAME.NUMBER` and `NAME.seconds`.

    What the reference says of all pairs is computed once, and its seconds are shared evenly by the methods that read it. Seconds of a
    method that reads the scorer have the scorer's with them, as those of PPO-Lagrangian have.

    Args:
        quickstart: its result, for the seconds of its steps.
    """
    if any(SHARED in METHODS[name].shares for name in names if name in METHODS):
        pipeline.step(SHARED, functools.partial(kinds.of_all_pairs, pipeline))
    result: dict[str, float] = {}
    for name in names:
        result |= INTERVENTIONS[name](pipeline) if name in INTERVENTIONS else _trained(pipeline, name, {**quickstart, **result})
    return result


def _trained(pipeline: Pipeline, name: str, known: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of one method.

    Args:
        known: numbers so far, those of the quickstart among them.
    """
    method, folder = METHODS[name], kinds.folder(pipeline, name)
    told: dict[str, float] = {}
    before = {step.format(name=name): record for step, record in method.before.items()}
    for step, record in before.items():
        told |= pipeline.step(step, functools.partial(record, pipeline))
    trained = pipeline.step(folder.name, trainer(pipeline, name, told))
    policy = folder / "best_feasible" if trained.get("best_feasible.step", -1) >= 0 else folder
    result = {f"{name}.{key}": told[key] for key in TOLD if key in told}
    result |= {f"{name}.{key}": value for key, value in kinds.judged(pipeline, name, policy).items()}
    seconds = sum(pipeline.seconds[step] for step in (folder.name, *before))
    seconds += sum(known[f"seconds.{step}"] for step in method.whole)
    seconds += sum(pipeline.seconds[step] / _readers(step) for step in method.shares)
    result[f"{name}.seconds"] = seconds + (known[f"{method.start}.seconds"] if method.start else 0.0)
    for ending, measure in method.after.items():
        result |= pipeline.step(f"{folder.name}.{ending}", functools.partial(measure, pipeline, name, method, policy))
    return result


def _readers(step: str) -> int:
    return sum(step in method.shares for method in METHODS.values())
