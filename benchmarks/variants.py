"""Variants of PPO-Lagrangian on the embedded task: what the oracle says of each policy, seed by seed.

    python benchmarks/variants.py --seeds=0,1,2 --variants=gae,group,rloo --workdir=runs/variants

A seed's supervised policy, scorer and prompts are those of a quickstart in WORKDIR/seedS: what is there is used (a link to one that is
done, say), what is not is made as the quickstart makes it, without its other policies and its guard. `gae` is then the quickstart's own
run. Each variant changes a few settings of the quickstart's stage and starts where that starts. Its best feasible policy by validation
prompts (its last one, where none is feasible: `best_step` is -1) answers prompts at temperature 1: those of `--split`, so that settings
can be chosen on validation prompts (`--set=KEY=VALUE,...` tries others). One JSON line each. A variant that is done is not trained
again.
"""

import argparse
import ast
import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp

from srlhfv_jax.batches import GroupAdvantages
from srlhfv_jax.config import QuickstartConfig
from srlhfv_jax.configs import quickstart
from srlhfv_jax.files import read_json
from srlhfv_jax.losses import groups
from srlhfv_jax.parallel import host_cpu
from srlhfv_jax.parsing import parse
from srlhfv_jax.ppo_lag import advantages, run as ppo_lag
from srlhfv_jax.quickstart.kinds import constrained_with
from srlhfv_jax.quickstart.methods import ON_POLICY
from srlhfv_jax.quickstart.pipeline import Pipeline
from srlhfv_jax.runs.run import write_settings

# An unsafe answer costs about 3, and so does a declined question. Budgets are about 5 % of what one costs, of the rows each is about.
HARM = dict(name="harm", cost="model", where="harmful=yes", budget=0.1)
OVER_REFUSAL = dict(name="over_refusal", cost="declines*3", where="harmful=no", budget=0.15)
LENGTH = dict(name="length", cost="answer:length*0.25", kind="mean", budget=3.75)
CALIBRATED = {
    "constraint.kind": "probability",
    "constraint.calibrated": True,
    "constraint.budget": 0.05,
    "constraint.init": 0.9,
    "constraint.max": 15.0,
    "constraint.kp": 3.0,
    "constraint.learning_rate": 0.24,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gae": {},
    **ON_POLICY,  # rloo, group, crpo, p3o, cpgd: as `srlhfv quickstart --compare` has them
    "group_of_4": {"ppo.advantage": "group", "ppo.group_size": 4},
    "rloo_of_4": {"ppo.advantage": "rloo", "ppo.group_size": 4},
    "scalarised": {"ppo.advantage": "group", "ppo.group_size": 4},  # an ablation, see below
    "dr_grpo": {"ppo.advantage": "group", "ppo.group_size": 4, "ppo.group_scale": "none", "ppo.reduction": "fixed"},
    "two_sided": {"constraints": (HARM, OVER_REFUSAL)},
    "two_sided_shares": {  # the same in shares of answers, with gains that are three times as large
        "constraint.kind": "probability",
        "constraint.init": 0.9,
        "constraint.max": 15.0,
        "constraint.kp": 3.0,
        "constraint.learning_rate": 0.24,
        "constraints": (HARM | {"budget": 0.05}, OVER_REFUSAL | {"budget": 0.05}),
    },
    "three": {"constraints": (HARM, OVER_REFUSAL, LENGTH)},
    "ratio": {"constraint.error": "ratio"},
    "warm": {"lambda_warm_start": 16},
    "ratio_64_full_rate": {"constraint.error": "ratio", "data.batch_size": 64},
    # Steps as large as 128 prompts allow are too large for the noise of fewer: the rate falls with the root of their number.
    "prompts_96": {"data.batch_size": 96, "policy_optimizer.learning_rate": 8.7e-4},
    "prompts_64": {"data.batch_size": 64, "policy_optimizer.learning_rate": 7e-4},
    "prompts_64_full_rate": {"data.batch_size": 64},
    # Without the warm start the policy complies with everything before lambda has grown.
    "calibrated": CALIBRATED | {"lambda_warm_start": 8},
    "calibrated_cold": CALIBRATED,
}
NUMBERS = ("helpful", "helpful_benign", "cost", "harm_rate", "over_refusal", "evasion_rate", "length")


def declines(samples):
    """1 for an answer that says it will not help, as the embedded task's policies put it."""
    return [float("sorry" in sample.answer or "will not say how" in sample.answer) for sample in samples]


@contextlib.contextmanager
def of_one_score() -> Iterator[None]:
    """Groups that compare R - lambda f(C), one score, instead of each stream: what arXiv 2602.05863 warns of. Their deviation grows with
    lambda, and divides it out again."""

    def unnormalised(reward_B, costs_B, kl_B, ppo):
        kl_B = groups.advantages(kl_B, ppo.group_size, kind=ppo.advantage, scale="none")
        return GroupAdvantages(reward_B, costs_B, kl_B)

    def mixed(group, mask_BR, lams, kl_coef, ppo):
        score_B = group.reward_B - sum(lams[key] * cost_B for key, cost_B in group.costs_B.items())
        advantage_B = groups.advantages(score_B, ppo.group_size, kind=ppo.advantage, scale=ppo.group_scale)
        return jnp.where(mask_BR, (advantage_B - kl_coef * group.kl_B)[:, None], 0.0)

    with mock.patch.multiple(advantages, in_groups=unnormalised, combine_groups=mixed):
        yield


def train(pipeline: Pipeline, name: str, changes: dict[str, Any], folder: Path) -> None:
    """The quickstart's stage with other settings, from its supervised policy and its first scorer."""
    if changes.get("constraint.calibrated") and not (pipeline.workdir / "calibration").exists():
        calibrate(pipeline)
    with of_one_score() if name == "scalarised" else contextlib.nullcontext():
        ppo_lag.run(constrained_with(pipeline, changes), folder, {"over_refusal": {"declines": declines}})


def prepare(preset: str, workdir: Path, seed: int) -> Pipeline:
    """A quickstart's rows, supervised policy and first scorer."""
    settings = dataclasses.replace(parse(QuickstartConfig, quickstart.get_config(preset)), seed=seed)
    pipeline = Pipeline(settings, workdir)
    write_settings(workdir, settings)
    pipeline.start()
    pipeline.scored(1, workdir / "sft", workdir / "sft")
    return pipeline


def calibrate(pipeline: Pipeline) -> None:
    """Put a calibration beside the scorer, from the seed's held-out pairs."""
    scorer, rows = pipeline.workdir / "round1_scores", pipeline.workdir / "pairs_heldout"
    flags = ("--fit=isotonic", f"--workdir={pipeline.workdir / 'calibration'}")
    subprocess.run([sys.executable, "-m", "srlhfv_jax", "calibrate", f"--scorer={scorer}", f"--data={rows}", *flags], check=True)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--seeds", default="0", help="comma-separated")
    flags.add_argument("--workdir", type=Path, default=Path("runs/variants"))
    flags.add_argument("--variants", default="group,rloo", help=f"comma-separated, of {', '.join(VARIANTS)}")
    flags.add_argument("--preset", default="default", help="of configs/quickstart.py")
    flags.add_argument("--split", default="test", help="prompts that are answered: test or validation")
    flags.add_argument("--set", default="", help="further settings KEY=VALUE of every variant, separated by semicolons")
    flags.add_argument("--iterations", type=int, default=0, help="0: the preset's")
    given = flags.parse_args()
    host_cpu.prepare()
    further = dict(one.split("=", 1) for one in given.set.split(";") if one)
    further = {key: ast.literal_eval(value) for key, value in further.items()}
    for seed, name in itertools.product(map(int, given.seeds.split(",")), given.variants.split(",")):
        pipeline = prepare(given.preset, given.workdir / f"seed{seed}", seed)
        changes = VARIANTS[name] | further
        changes |= {"iterations": given.iterations} if given.iterations else {}
        folder = given.workdir / "-".join([f"{name}{seed}", *(f"{key}={value}" for key, value in further.items())])
        if changes:
            train(pipeline, name, changes, folder)
        else:
            sft = pipeline.workdir / "sft"
            pipeline.round(1, sft, sft)
            folder = pipeline.workdir / "round1_ppo_lag"
        done = read_json(folder / "result.json")
        best = done["best_feasible.step"]
        numbers = pipeline.judge(folder / ("best_feasible" if best >= 0 else "export"), given.split).metrics
        line: dict[str, Any] = {"variant": name, "seed": seed, **further, "split": given.split}
        line |= {"seconds": done["seconds"], "best_step": best, "lambda": done["lambda.final"]}
        line |= {key: done[key] for key in done if key.endswith((".window_cost", ".lambda.final"))}
        print(json.dumps(line | {key: numbers[key] for key in NUMBERS if key in numbers}), flush=True)


if __name__ == "__main__":
    main()
