"""`srlhfv dual`: the multiplier of a budget, E[f(C)] <= budget, from a policy's scored answers, before anything is trained.

    srlhfv dual --policy=W/sft --scorer=W/scores --data=prompts.parquet --budget=0.1 --workdir=D

    srlhfv dual --policy=W/sft --helpful=W/helpful --harmless=W/harmless --data=prompts.parquet --budget=-1 --workdir=D

Samples answers at temperature 1 and scores them: by a scorer, or by two policies that were trained on preferences, as
reward = beta log(helpful / reference) and cost = -beta log(harmless / reference). Prints the multiplier of the best policy within the
budget, what its answers would cost and be worth, and which budgets there are; writes result.json, and every answer with its scores to
scores.jsonl, from which another budget, kind or beta is solved without sampling. docs/dual.md says what the number is for.
"""

import functools
from pathlib import Path

from absl import flags as absl_flags

from srlhfv_jax.cli import define, switches
from srlhfv_jax.parallel import host_cpu


def main(argv: list[str]) -> None:
    values = _flags()
    switches.read(values, "dual", argv, __doc__)
    host_cpu.prepare()
    switches.required(values, "workdir", "policy", "data", "budget")
    from srlhfv_jax.evaluation import dual
    from srlhfv_jax.runs import run

    settings = define.settings(dual.Settings, values)
    dual.check(settings)
    run.command(functools.partial(run.record, dual.run), settings, Path(values.workdir))


def _flags() -> absl_flags.FlagValues:
    command = define.define()
    command.text("workdir", None, "folder to write to; answers that lie there are read again")
    command.text("policy", None, "workdir of a stage, or an export: where training will start from")
    command.text("data", None, "rows with a question (and picture)")
    command.text("scorer", "", "workdir or export with the heads reward and cost, or REWARD,COST of two separate models")
    command.text("helpful", "", "a policy trained on which answer is more helpful, in the place of the head reward")
    command.text("harmless", "", "a policy trained on which answer is safer, in the place of the head cost")
    command.text("reference", "", "the policy that these two started from; empty: --policy")
    command.choice("kind", "mean", ["mean", "rectified", "probability"], "f, as config.constraint.kind")
    command.real("budget", None, "largest E[f(C)]")
    command.real("beta", 0.1, "of the KL to the policy, in units of the reward")
    command.real("ceiling", 100.0, "largest multiplier")
    command.whole("samples", 16, "answers to each prompt")
    command.whole("prompts", 0, "prompts drawn from the data by the seed; 0: all")
    command.whole("prompt_length", 0, "longest prompt in tokens (P); 0: that of the data")
    command.whole("response_length", 256, "longest answer in tokens (R)", 1)
    command.whole("batch_size", 32, "answers sampled at once", 1)
    command.whole("seed", 0, "of the sampling", most=define.SEEDS)
    define.rows(command)
    define.dtype(command)
    return command.values
