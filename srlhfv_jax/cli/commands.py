"""Every command: what `srlhfv --help` says of it, and the function that runs it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from srlhfv_jax.cli import (
    benchmark,
    calibrate,
    certify,
    data,
    dual,
    env,
    evaluate,
    export,
    generate,
    moderate,
    plan,
    quickstart,
    report,
    revise,
    serve,
    stage,
    weights,
)
from srlhfv_jax.ppo_lag.stage import PPO_LAG
from srlhfv_jax.preference.stage import PREFERENCE
from srlhfv_jax.supervised.stages import COST, REWARD, SCORES, SFT


class Command(NamedTuple):
    """One word after `srlhfv`."""

    summary: str
    main: Callable[[list[str]], None]  # takes the arguments after the command's name


def _guard(argv: list[str]) -> None:
    from srlhfv_jax.guard.stage import GUARD  # with its room, which needs jax

    stage.main(GUARD, argv)


COMMANDS = {
    "quickstart": Command("the whole pipeline on the embedded task, on a CPU, with a report at the end", quickstart.main),
    "data": Command("prepare or inspect a data set: layout, rows, drops by reason, lengths", data.main),
    "sft": Command("supervised fine-tuning", partial(stage.main, SFT)),
    "scores": Command("reward and cost heads on one backbone from dual preferences", partial(stage.main, SCORES)),
    "reward": Command("a reward model of its own", partial(stage.main, REWARD)),
    "cost": Command("a cost model of its own", partial(stage.main, COST)),
    "preference": Command("a policy from pairs, without a rollout: DPO and its relatives", partial(stage.main, PREFERENCE)),
    "guard": Command("a guard: severity and categories of harm, of questions and of answers", _guard),
    "ppo_lag": Command("PPO-Lagrangian: more helpful, with the cost under a budget", partial(stage.main, PPO_LAG)),
    "plan": Command("memory of a run on a TPU slice, before it is paid for", plan.main),
    "generate": Command(
        "a policy's answer to one prompt, or to every row of a data set; under a guard if one is given", generate.main
    ),
    "moderate": Command("what a guard says of a question, or of an answer to it", moderate.main),
    "serve": Command("a guard, and a policy under it, as an HTTP service", serve.main),
    "evaluate": Command("compare policies by oracle or by reward and cost models", evaluate.main),
    "benchmark": Command("policies on local copies of published safety benchmarks", benchmark.main),
    "calibrate": Command("the probability that an answer of this cost is unsafe, from held-out labels", calibrate.main),
    "certify": Command("a bound on a policy's true share of unsafe answers, or mean cost, on fresh prompts", certify.main),
    "dual": Command("the multiplier of a budget, from a policy's scored answers, before anything is trained", dual.main),
    "report": Command("one self-contained report.html of a workdir", report.main),
    "export": Command("rewrite a checkpoint as a Hugging Face folder (dtype, shard size)", export.main),
    "weights": Command("policies between two; units that serve safety; where a change of weights lies", weights.main),
    "revise": Command("a policy whose activations are revised while it answers: directions from pairs, no training", revise.main),
    "env": Command("versions, devices and git, for a bug report", env.main),
}
