"""The same few prompts, answered by the policy every `config.log.samples_every` iterations (evaluation/same_prompts.py).

They are the first of the validation prompts, or of the training's where there are none. No random number of the training changes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.config.constraints import FIRST
from srlhfv_jax.data import loader
from srlhfv_jax.evaluation import same_prompts
from srlhfv_jax.functions import score as functions_score
from srlhfv_jax.parallel import hosts
from srlhfv_jax.ppo_lag import validate
from srlhfv_jax.runs.run import Started
from srlhfv_jax.training import state as states

Listen = Callable[[int, np.ndarray, Sequence[Mapping[str, Any]]], list[str]]


def make(
    settings: PPOLagConfig,
    iteration,
    started: Started,
    rows: dict[str, loader.Prepared],
    functions: functions_score.Scorer | None = None,
    listen: Listen = lambda step, cost_B, verdicts: [],
) -> Callable[[states.TrainState, int], None]:
    """The loop's `sample`: (state, step) -> answers in the workdir, where they are due.

    Args:
        iteration: the training's own, as in `validate.make`.
        rows: those of the run, by setting.
        functions: the part of the scores that functions make.
        listen: (step, costs, a guard's columns) -> lines to say of the answers.
    """
    every = settings.log.samples_every
    if not every:
        return lambda state, step: None
    prompts = same_prompts.first(rows.get("validation", rows["data"]), settings.log.samples)
    answer = validate.sampler(settings, iteration, started, prompts)
    score = validate.scorer(iteration, None if functions is None else functools.partial(functions, prompts))

    def sample(state: states.TrainState, step: int) -> None:
        if step % every and step != settings.iterations:
            return
        answers, scores = answer(state.params["policy"], score)
        verdicts = same_prompts.record(started.writer, prompts, step, answers, scores, started.verdicts)
        for line in listen(step, scores[FIRST], verdicts):
            hosts.say(f"warning: {line}")

    return sample
