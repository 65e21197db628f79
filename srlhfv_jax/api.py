"""The stages from Python: `import srlhfv_jax as sv`, rows in memory, functions as rewards and costs.

    result = sv.ppo_lag(policy="W/sft", reward=f, cost=g, prompts=rows, workdir="W/own", iterations=50)
    result.numbers, result.path, result.metrics(), result.report(), result.sample(rows[:3])

Nothing is imported before a function is called: importing the package starts no JAX. Each call is the command of its name, with the
same settings, checks and workdir; a mistake is a UserError of one line. Rows go through a file in the workdir, from which a run that
goes on reads them again.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

Rows = str | Path | Sequence[Mapping[str, Any]]  # a path as of config.data.path, or dicts in any layout of docs/data.md
Function = Callable[[list], Any]  # samples (functions/sample.py) -> a number for each
Score = str | Path | Function | Sequence[str | Path | Function | tuple[str | Path | Function, float]]
NOTHING: Mapping[str, Any] = MappingProxyType({})


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
        """An answer of the policy in `path` to each row."""
        return load(self.path, temperature=temperature, seed=seed).generate(rows)


class Policy:
    """A checkpoint that answers."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy  # evaluation.answering.Policy
        self._drawn = 0

    def generate(self, rows: Rows) -> list[str]:
        """An answer to each row's question. Called again it samples others, unless the temperature is 0.

        Raises:
            UserError: a row that cannot be used.
        """
        from srlhfv_jax.data import rows as layouts, sources
        from srlhfv_jax.data.loader import single_pass
        from srlhfv_jax.errors import UserError
        from srlhfv_jax.evaluation import answering

        if isinstance(rows, (str, Path)):
            examples = sources.load_examples(single_pass(str(rows)))
        else:
            examples = sources.in_memory(rows, single_pass())
        if examples.dropped:
            drop = examples.dropped[0]
            raise UserError(f"row {drop.row} cannot be answered: {drop.reason} ({drop.detail})")
        self._drawn += 1
        return answering.answer_prompts(self._policy, [layouts.prompt_of(example) for example in examples], self._drawn - 1)


def load(path: str | Path, *, temperature: float = 1.0, max_tokens: int = 256, seed: int = 0) -> Policy:
    """Open a policy: a workdir, an export, a Hugging Face folder or id.

    Args:
        temperature: 0 is greedy.
        max_tokens: of an answer.

    Raises:
        UserError: there is no checkpoint.
    """
    from srlhfv_jax.config import MeshConfig, inference
    from srlhfv_jax.data.loader import single_pass
    from srlhfv_jax.evaluation import answering
    from srlhfv_jax.parallel.mesh import make_mesh

    data = single_pass(response_length=max_tokens)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))
    return Policy(answering.load_policy(str(path), data, inference("float32"), mesh, temperature=temperature, seed=seed))


def config(name: str, overrides: Mapping[str, Any] = NOTHING) -> Any:
    """The ConfigDict of "STAGE:PRESET" (or "STAGE", or a file), with changed values by dotted keys: {"constraint.budget": 0.1}.

    Raises:
        UserError: no such preset or key, or a value of another type.
    """
    from srlhfv_jax.cli.config_files import load as load_config
    from srlhfv_jax.errors import UserError, reason
    from srlhfv_jax.parsing import check_key

    stage, colon, preset = name.partition(":")
    settings = load_config(f"{stage if stage.endswith('.py') else f'{stage}.py'}{colon}{preset}")
    for key in overrides:
        check_key(settings, key)
    try:
        with settings.unlocked():
            settings.update_from_flattened_dict(dict(overrides))
    except (TypeError, ValueError) as error:
        raise UserError(reason(error)) from error
    return settings


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
    scorer: str | Path = "",
    iterations: int | None = None,
    validation: Rows = "",
    preset: str = "default",
    overrides: Mapping[str, Any] = NOTHING,
) -> Result:
    """PPO-Lagrangian (`srlhfv ppo_lag`).

    Args:
        policy: the checkpoint that is trained.
        reward, cost: a function, or several, each alone or as (function, weight); "FILE.py:NAME" is a function of a file, and "model"
            the head of `scorer`. "": that head alone.
        scorer: a workdir of `scores`, where a learned head has a part.
        validation: prompts that choose the best feasible policy.

    Raises:
        UserError: as the command.
    """
    from srlhfv_jax.ppo_lag.stage import PPO_LAG

    given: dict[str, dict[str, Function]] = {"reward": {}, "cost": {}}
    named = {"reward_fn": _terms(reward, "reward", given), "cost_fn": _terms(cost, "cost", given)}
    settings = {"policy": str(policy), "scorer": str(scorer)} | named
    settings |= {} if iterations is None else {"iterations": iterations}
    rows = {"data.path": prompts} | ({"validation.path": validation} if len(validation) else {})
    return _run(PPO_LAG, preset, Path(workdir), settings, rows, overrides, given)


def _terms(score: Score, name: str, given: dict[str, dict[str, Function]]) -> str:
    """The text of `config.NAME_fn`; functions of Python go to `given`, under names of their own."""
    items = list(score) if isinstance(score, (list, tuple)) else [score] if score else []
    texts = []
    for item in items:
        function, weight = item if isinstance(item, tuple) else (item, 1)
        if callable(function):
            named = function.__name__ if hasattr(function, "__name__") else type(function).__name__
            text = re.sub(r"\W+", "_", named).strip("_")
            given[name][text] = function
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
    from srlhfv_jax.parsing import flattened, parse
    from srlhfv_jax.runs.run import command

    name = f"{stage.name}:{preset}"
    paths = {key: _path(some, workdir / "rows" / f"{key.partition('.')[0]}.jsonl") for key, some in rows.items()}
    in_memory = any(not isinstance(some, (str, Path)) for some in rows.values())
    folder = {"data.image_dir": "."} if in_memory else {}  # of pictures that rows name
    before, after = config(name), config(name, {**settings, **paths, **folder, **overrides})
    parsed, old = parse(stage.settings, after), flattened(before)
    unread.check_changed(parsed, [key for key, value in flattened(after).items() if value != old[key]])
    stage.check(parsed)
    run = stage.load()
    command(run if not any(given.values()) else lambda settings, where: run(settings, where, given), parsed, workdir)
    return Result(workdir, files.read_json(workdir / "result.json"))


def _path(rows: Rows, path: Path) -> str:
    """The path of rows; those in memory are written to `path` first, their pictures as base64."""
    if isinstance(rows, (str, Path)):
        return str(rows)
    from srlhfv_jax import files
    from srlhfv_jax.data.memory import Plain

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, "".join(json.dumps(_textual(row)) + "\n" for row in Plain(rows, path.stem)))
    return str(path)


def _textual(value: Any) -> Any:
    if isinstance(value, bytes):
        return "data:;base64," + base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {name: _textual(item) for name, item in value.items()}
    return [_textual(item) for item in value] if isinstance(value, list) else value
