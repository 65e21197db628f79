"""PPO-Lagrangian: more reward while the cost stays under its budget. With controller "none" it is PPO, with "fixed" reward
shaping. One iteration stands in iteration.py.
"""

import functools
from pathlib import Path
from types import MappingProxyType
from typing import Any

from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.config.constraints import metric
from srlhfv_jax.functions import conditions, load, score
from srlhfv_jax.hf.card import SIGNS, Product
from srlhfv_jax.losses import lagrangian
from srlhfv_jax.parallel import hosts
from srlhfv_jax.ppo_lag import alarms, check, rows as prompts, validate, warm_start, watch
from srlhfv_jax.ppo_lag.iteration import Iteration
from srlhfv_jax.ppo_lag.load import load_models
from srlhfv_jax.runs import checkpoints, inputs
from srlhfv_jax.runs.run import describe_parameters, export_run, finish, last_numbers, start
from srlhfv_jax.runs.stage import LoadGuard
from srlhfv_jax.training import loop, state as states

SETTINGS = {"data": "config.data.path", "validation": "config.validation.path"}  # of prompts
PRODUCT = Product(
    "ppo_lag",
    "A policy trained for helpfulness with its learned cost held to a budget (PPO-Lagrangian). Beyond the prompts it was trained and "
    f"validated on, nothing is known of its safety. In the numbers below, {SIGNS}",
    answers=True,
)


def run(
    settings: PPOLagConfig, workdir: Path, given: load.Given = MappingProxyType({}), load_guard: LoadGuard | None = None
) -> dict[str, float]:
    """Train and export the last policy to WORKDIR/export and the best feasible one to WORKDIR/best_feasible.

    Args:
        given: functions of Python, which settings name without a file.
        load_guard: as in `runs.run.start`.

    Returns the last iteration's numbers, `best_feasible.*` (step -1: no validation result was within the budget) and
    `lambda.final`, with a warm start `lambda.start`.
    """
    check.check(settings)
    functions = load.load(settings, given)
    started = start(settings, workdir, load_guard)
    load.check_same(functions)
    check.check_rows(settings, started.mesh)
    check.check_checkpoints(settings)
    rows = prompts.prepare(settings, checkpoints.load_shape(settings.policy, settings.model, settings.data.chat_template))
    conditions.check(settings, {SETTINGS[name]: some for name, some in rows.items() if name in SETTINGS})
    models = load_models(settings, started.mesh)
    inputs.check_prompt_suffix(models.policy, *rows.values())
    for name, tree in (models.trained | models.frozen).items():
        describe_parameters(name, tree, started.mesh)

    scorer = score.scorer(settings, functions, started) if settings.by_functions else None
    called = None if scorer is None else score.in_iteration(scorer, rows["data"], started.mesh)
    iteration = Iteration(settings, models, started.mesh, checkpoints.vocabulary(models.policy), functions=called)
    notes: dict[str, Any] = {"best": {"step": -1}}
    evaluate = None
    if settings.validation.path:
        asked = None if scorer is None else functools.partial(scorer, rows["validation"])
        evaluate = validate.make(settings, iteration, started, rows["validation"], notes, asked)

    evaluate = alarms.listen(settings, notes, evaluate, hosts.say)

    def listen_to_samples(step: int, cost_B, verdicts) -> list[str]:
        return alarms.after_samples(alarms.start(notes), step, cost_B, verdicts)

    def numbers(state: states.TrainState) -> dict[str, float]:
        best = {f"best_feasible.{name}": value for name, value in notes["best"].items()}
        final = {
            metric(key, "lambda.final"): float(lagrangian.multiplier(one.settings, state.extra.controllers[key]))
            for key, one in settings.costs.items()
        }
        return last_numbers(started) | best | notes.get(warm_start.START, {}) | final | alarms.told(alarms.start(notes))

    def export(state: states.TrainState) -> None:
        config, policy = models.policy.config, state.params["policy"]
        export_run(started, PRODUCT, config, policy, base=models.policy.path, result=numbers(state))

    state = loop.run(
        name="ppo_lag",
        step_fn=warm_start.before(iteration, notes) if settings.lambda_warm_start else iteration,
        state=iteration.initial_state(),
        batches=prompts.batches(settings, rows, started.mesh),
        total_steps=settings.iterations,
        manager=started.manager,
        writer=started.writer,
        evaluate=evaluate,
        evaluate_every=settings.validation.every_steps,
        log_every=settings.log.every_steps,
        show=("reward", "cost", "lambda", "kl"),
        notes=notes,
        export=export,
        listen=lambda step, numbers: alarms.after_step(settings, alarms.start(notes), step, numbers),
        sample=watch.make(settings, iteration, started, rows, scorer, listen_to_samples),
    )
    steered = any(one.settings.controller != "none" for one in settings.costs.values())
    if evaluate is not None and steered and notes["best"]["step"] < 0:
        hosts.say(
            f"ppo_lag: no validation result was within the budget: there is no {workdir / validate.BEST}, and export holds the last "
            "policy"
        )
    return finish(started, PRODUCT, numbers(state))
