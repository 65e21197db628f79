"""The stages as functions: each call is the command of its name, with the same settings, checks and workdir."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srlhfv_jax.api import model, rows as given_rows
from srlhfv_jax.api.rows import Rows
from srlhfv_jax.api.settings import NOTHING, config

Function = Callable[[list], Any]  # samples (functions/sample.py) -> a number for each
Score = str | Path | Function | Sequence[str | Path | Function | tuple[str | Path | Function, float]]


class Result(NamedTuple):
    """A stage that was run."""

    workdir: Path
    numbers: dict[str, float]  # as in result.json

    @property
    def path(self) -> Path:
        """The checkpoint to go on with: the best feasible policy where there is one, else the export."""
        best = self.workdir / "best_feasible"
        return best if best.is_dir() else self.workdir / "export"

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, such as `pandas.DataFrame` takes them."""
        from srlhfv_jax.training import metrics

        return metrics.read(self.workdir / "metrics.jsonl")

    def report(self) -> Path:
        """Write WORKDIR/report.html; gives its path."""
        from srlhfv_jax.report.build import write_report

        return write_report(self.workdir)

    def sample(self, rows: Rows, *, temperature: float = 1.0, seed: int = 0) -> list[str]:
        """An answer of the policy in `path` to each row, as `config.data` puts questions to it."""
        from srlhfv_jax import files

        data = files.read_json(self.workdir / "config.json")["data"]
        policy = model.load(self.path, system_prompt=data["system_prompt"], max_pixels=data["max_pixels"])
        return policy.generate(rows, temperature=temperature, seed=seed)


def sft(
    init: str | Path, rows: Rows, workdir: str | Path, *, preset: str = "default", overrides: Mapping[str, Any] = NOTHING
) -> Result:
    """Supervised fine-tuning (`srlhfv sft`) of the checkpoint `init` on rows with a response."""
    from srlhfv_jax.supervised.stages import SFT

    return _run(SFT, preset, Path(workdir), {"init": str(init)}, {"data.path": rows}, overrides)


def scores(
    init: str | Path, rows: Rows, workdir: str | Path, *, preset: str = "default", overrides: Mapping[str, Any] = NOTHING
) -> Result:
    """Reward and cost heads (`srlhfv scores`) on the checkpoint `init`, from rows with two responses and both preferences."""
    from srlhfv_jax.supervised.stages import SCORES

    return _run(SCORES, preset, Path(workdir), {"init": str(init)}, {"data.path": rows}, overrides)


def preference(
    init: str | Path, rows: Rows, workdir: str | Path, *, preset: str = "default", overrides: Mapping[str, Any] = NOTHING
) -> Result:
    """A policy from pairs (`srlhfv preference`), from the checkpoint `init` and rows with two responses; `preset` is the method."""
    from srlhfv_jax.preference.stage import PREFERENCE

    return _run(PREFERENCE, preset, Path(workdir), {"init": str(init)}, {"data.path": rows}, overrides)


def guard(
    init: str | Path, rows: Rows, workdir: str | Path, *, preset: str = "default", overrides: Mapping[str, Any] = NOTHING
) -> Result:
    """A guard (`srlhfv guard`) on the checkpoint `init`, from rows with safety labels."""
    from srlhfv_jax.guard.stage import GUARD

    return _run(GUARD, preset, Path(workdir), {"init": str(init)}, {"data.path": rows}, overrides)


def ppo_lag(
    policy: str | Path,
    prompts: Rows,
    workdir: str | Path,
    *,
    reward: Score = "",
    cost: Score = "",
    constraints: Sequence[Mapping[str, Any]] = (),
    scorer: str | Path = "",
    iterations: int | None = None,
    validation: Rows | None = None,
    preset: str = "default",
    overrides: Mapping[str, Any] = NOTHING,
) -> Result:
    """PPO-Lagrangian (`srlhfv ppo_lag`).

    Args:
        policy: the checkpoint that is trained.
        reward, cost: a function, or several, each alone or as (function, weight); "FILE.py:NAME" is a function of a file, and "model"
            the head of `scorer`. "": that head alone.
        constraints: several, each as an item of `config.constraints` (config/constraints.py); its `cost` is as `cost` here, which stays "".
        scorer: a workdir of `scores`, where a learned head has a part.
        validation: prompts that choose the best feasible policy; None: nothing does.

    Raises:
        UserError: as the command.
    """
    from srlhfv_jax.ppo_lag.stage import PPO_LAG

    given: dict[str, dict[str, Function]] = {"reward": {}, "cost": {}}
    named: dict[str, Any] = {"reward_fn": _terms(reward, "reward", given), "cost_fn": _terms(cost, "cost", given)}
    if constraints:
        named["constraints"] = tuple(_constraint(item, place, given) for place, item in enumerate(constraints))
    settings = {"policy": str(policy), "scorer": str(scorer)} | named
    settings |= {} if iterations is None else {"iterations": iterations}
    rows = {"data.path": prompts} | ({} if validation is None else {"validation.path": validation})
    return _run(PPO_LAG, preset, Path(workdir), settings, rows, overrides, given)


def _constraint(item: Mapping[str, Any], place: int, given: dict[str, dict[str, Function]]) -> dict[str, Any]:
    """An item of `config.constraints`; functions of Python go to `given`."""
    from srlhfv_jax.config.constraints import FIRST

    key = FIRST if place == 0 else str(item.get("name"))
    cost = _terms(item.get("cost", ""), key, given)
    return {**item, "cost": cost} if "cost" in item else dict(item)


def _terms(score: Score, name: str, given: dict[str, dict[str, Function]]) -> str:
    """The text of `config.NAME_fn`; functions of Python go to `given`, under names of their own."""
    items = list(score) if isinstance(score, (list, tuple)) else [score] if score else []
    texts = []
    for item in items:
        function, weight = item if isinstance(item, tuple) else (item, 1)
        if callable(function):
            named = function.__name__ if hasattr(function, "__name__") else type(function).__name__
            text = re.sub(r"\W+", "_", named).strip("_")
            given.setdefault(name, {})[text] = function
        else:
            text = str(function)
        texts.append(text if weight == 1 else f"{text}*{weight!r}")
    return ",".join(texts)


def _run(
    stage: Any,
    preset: str,
    workdir: Path,
    settings: Mapping[str, Any],
    rows: Mapping[str, Rows],
    overrides: Mapping[str, Any],
    given: Mapping[str, Mapping[str, Function]] = NOTHING,
) -> Result:
    """Run a stage as its command does."""
    from srlhfv_jax import files
    from srlhfv_jax.config import unread
    from srlhfv_jax.guard.watch import with_guard
    from srlhfv_jax.parsing import flattened, parse
    from srlhfv_jax.runs.run import command

    name = f"{stage.name}:{preset}"
    paths = {key: given_rows.path_of(some, workdir / "rows" / f"{key.partition('.')[0]}.jsonl") for key, some in rows.items()}
    in_memory = any(not isinstance(some, (str, Path)) for some in rows.values())
    folder = {"data.image_dir": "."} if in_memory else {}  # of pictures that rows name
    before, after = config(name), config(name, {**settings, **paths, **folder, **overrides})
    parsed, old = parse(stage.settings, after), flattened(before)
    unread.check_changed(parsed, [key for key, value in flattened(after).items() if value != old[key]])
    stage.check(parsed)
    run = with_guard(stage.load(), parsed)
    command(run if not any(given.values()) else lambda settings, where: run(settings, where, given), parsed, workdir)
    return Result(workdir, files.read_json(workdir / "result.json"))
