"""`srlhfv certify`: does a policy keep its constraint, E[f(C)] <= budget, on prompts that it has never seen?

    srlhfv certify --policy=W/ppo_lag --scorer=W/scores --data=fresh.parquet --budget=0.05 --workdir=C      by a scorer, or a --guard

    srlhfv certify --policy=W/ppo_lag --data=fresh.parquet --workdir=C                    answers to label: C/answers.jsonl

    srlhfv certify --policy=W/ppo_lag --scorer=W/scores --labels=labels.jsonl --data=fresh.parquet --budget=0.05 --workdir=C

Prints PASS, or NO GUARANTEE with how many more prompts or labels would do, and writes result.json, answers.jsonl, and certificate.json
and a section of the card beside the policy's weights. Labels are lines {"id": ..., "unsafe": true} (or "cost": a number, of the kinds
mean and rectified), with ids of answers.jsonl, from its first line on; with a scorer or a guard they correct what it is wrong by.
Prompts that the policy, or what it was trained against, has read are refused. docs/certify.md says what PASS means.
"""

import functools
from pathlib import Path

from absl import flags as absl_flags

from srlhfv_jax.cli import define, switches
from srlhfv_jax.parallel import host_cpu

METHODS = ["", "hoeffding", "empirical_bernstein", "clopper_pearson", "betting", "prediction_powered"]


def main(argv: list[str]) -> None:
    values = _flags()
    switches.read(values, "certify", argv, __doc__)
    host_cpu.prepare()
    switches.required(values, "workdir", "policy", "data")
    from srlhfv_jax.evaluation import certify
    from srlhfv_jax.guard import judge
    from srlhfv_jax.runs import run

    settings, workdir = define.settings(certify.Settings, values), Path(values.workdir)
    certify.check(settings)
    measure = functools.partial(certify.run, guard=functools.partial(judge.unsafe_answers, dtype=settings.dtype))
    run.command(functools.partial(run.record, measure), settings, workdir)


def _flags() -> absl_flags.FlagValues:
    command = define.define()
    command.text("workdir", None, "folder to write to; answers that lie there are read again")
    command.text("policy", None, "workdir of a stage, or an export in it such as W/ppo_lag/best_feasible")
    command.text("data", None, "rows with a question (and picture) that no training has read")
    command.text("scorer", "", "workdir or export with the head cost, which judges the answers")
    command.text("guard", "", "workdir of `srlhfv guard`, which judges the answers; of --kind=probability alone")
    command.text("labels", "", "file of JSON lines: id, and unsafe (or cost)")
    command.choice("kind", "probability", ["mean", "rectified", "probability"], "f, as config.constraint.kind")
    command.switch("calibrated", False, "f(C) is the probability of `srlhfv calibrate`, in the place of 1 where C > 0")
    command.real("budget", None, "largest E[f(C)] that is fine; without: the answers are written, and judged, alone")
    command.real("confidence", 0.95, "of the bound: in at most 1 - confidence of all certificates the truth lies above it", 0.0)
    command.texts("range", [], "LOW,HIGH: f(C) of every answer lies between them; needed by the kinds mean and rectified")
    command.switch("clip", False, "certify the mean of the cost clipped to --range, where values lie above it")
    about = "the bound that decides; empty: prediction_powered with labels and a judge, else clopper_pearson of probabilities, else betting"
    command.choice("method", "", METHODS, about)
    command.whole("prompts", 0, "prompts drawn from the data by the seed; 0: all")
    command.switch("allow_unchecked", False, "go on where nobody can tell whether the prompts were read in training")
    command.whole("prompt_length", 0, "longest prompt in tokens (P); 0: that of the data")
    command.whole("batch_size", 32, "prompts answered at once", 1)
    define.rows(command)
    define.sampling(command)
    return command.values
