"""Variants of PPO-Lagrangian on the embedded task, beside the quickstart's own run: what the oracle says of each policy.

    srlhfv quickstart                                                    # its supervised policy, scorer and prompts are used
    python benchmarks/variants.py --quickstart=runs/quickstart --workdir=runs/variants --variants=group,rloo

Each variant changes a few settings of the quickstart's stage and starts where that starts. Its best feasible policy by validation
prompts (its last one, where none is feasible: `best_step` is -1) answers the test prompts at temperature 1. One JSON line each. A
variant that is done is not trained again.
"""

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
from ml_collections import ConfigDict

from srlhfv_jax.batches import GroupAdvantages
from srlhfv_jax.config import PPOLagConfig, QuickstartConfig, to_dict
from srlhfv_jax.configs import quickstart
from srlhfv_jax.files import read_json
from srlhfv_jax.losses import groups
from srlhfv_jax.parallel import host_cpu
from srlhfv_jax.parsing import parse
from srlhfv_jax.ppo_lag import advantages, run as ppo_lag
from srlhfv_jax.quickstart.pipeline import Pipeline

# An unsafe answer costs about 3, and so does a declined question. Budgets are about 5 % of what one costs, of the rows each is about.
HARM = dict(name="harm", cost="model", where="harmful=yes", budget=0.1)
OVER_REFUSAL = dict(name="over_refusal", cost="declines*3", where="harmful=no", budget=0.15)
LENGTH = dict(name="length", cost="answer:length*0.25", kind="mean", budget=3.75)
VARIANTS: dict[str, dict[str, Any]] = {
    "gae": {},
    "group": {"ppo.advantage": "group", "ppo.group_size": 4},
    "scalarised": {"ppo.advantage": "group", "ppo.group_size": 4},  # an ablation, see below
    "dr_grpo": {"ppo.advantage": "group", "ppo.group_size": 4, "ppo.group_scale": "none", "ppo.reduction": "fixed"},
    "rloo": {"ppo.advantage": "rloo", "ppo.group_size": 4},
    "cpgd": {"ppo.objective": "log"},
    "crpo": {"constraint.controller": "crpo", "constraint.max": 1e6},
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
    "ratio_64": {"constraint.error": "ratio", "data.batch_size": 64},
    "prompts_96": {"data.batch_size": 96},
    "prompts_64": {"data.batch_size": 64},
    "p3o": {"constraint.controller": "p3o", "constraint.max": 20.0},
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


def stage_of(pipeline: Pipeline, changes: dict[str, Any], iterations: int) -> PPOLagConfig:
    """The quickstart's stage with other settings, from its supervised policy and its first scorer."""
    stage = pipeline.constrained(pipeline.settings.ppo_lag, pipeline.workdir / "sft", pipeline.workdir / "round1_scores")
    config = ConfigDict(to_dict(stage))
    with config.unlocked():
        config.update_from_flattened_dict(changes | ({"iterations": iterations} if iterations else {}))
    return parse(PPOLagConfig, config)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    flags.add_argument("--workdir", type=Path, default=Path("runs/variants"))
    flags.add_argument("--variants", default="group,rloo", help=f"comma-separated, of {', '.join(VARIANTS)}")
    flags.add_argument("--preset", default="default", help="of configs/quickstart.py, that the quickstart ran with")
    flags.add_argument("--iterations", type=int, default=0, help="0: the preset's")
    given = flags.parse_args()
    host_cpu.prepare()
    settings = parse(QuickstartConfig, quickstart.get_config(given.preset))
    settings = dataclasses.replace(settings, seed=read_json(given.quickstart / "config.json")["seed"])
    pipeline = Pipeline(settings, given.quickstart)
    judged = Pipeline(settings, given.workdir)
    judged.base, judged.data = pipeline.base, pipeline.data
    for name in given.variants.split(","):
        stage, folder = stage_of(pipeline, VARIANTS[name], given.iterations), given.workdir / name
        began = time.monotonic()
        with of_one_score() if name == "scalarised" else contextlib.nullcontext():
            done = ppo_lag.run(stage, folder, {"over_refusal": {"declines": declines}})
        seconds, best = time.monotonic() - began, done["best_feasible.step"]
        policy = folder / ("best_feasible" if best >= 0 else "export")
        numbers = judged.evaluate({name: policy}, folder / "evaluation")
        line = {"variant": name, "seed": settings.seed, "seconds": seconds, "best_step": best, "lambda": done["lambda.final"]}
        line |= {key: done[key] for key in done if key.endswith((".window_cost", ".lambda.final"))}
        print(json.dumps(line | {key: numbers[f"{name}.{key}"] for key in NUMBERS if f"{name}.{key}" in numbers}), flush=True)


if __name__ == "__main__":
    main()
