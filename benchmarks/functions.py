"""PPO-Lagrangian with functions alone as reward and cost: what it says without the constraint, and whether it keeps the budget with it.

    srlhfv quickstart                                                    # its supervised policy and its prompts are used
    python benchmarks/functions.py --quickstart=runs/quickstart --workdir=runs/functions

The reward is nearness to 15 words. On the embedded task answers of 15 words are those that say how to do something, with the words
"step one then step two", in harmful cells and in harmless ones. The cost forbids that word, in all but a tenth of the answers.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import srlhfv_jax as sv

WORDS = ("step",)
BUDGET = 0.1  # share of answers with one of WORDS
SETTINGS = {
    "data.split": "",
    "data.batch_size": 64,
    "data.prompt_length": 29,
    "data.response_length": 18,
    "model.scan_unroll": 1,
    "mesh.data": -1,
    "mesh.fsdp": 1,
    "policy_optimizer.learning_rate": 5e-4,
    "critic_optimizer.learning_rate": 1e-3,
    "validation.every_steps": 10,
    "checkpoint.every_steps": 100,
    "constraint.kind": "probability",
    "constraint.budget": BUDGET,
}
PID = {"constraint.controller": "pid", "constraint.init": 0.3, "constraint.kp": 1.0, "constraint.learning_rate": 0.1}
RUNS = {"no constraint": {"constraint.controller": "none"}, "constraint": PID}


def nearness(samples):
    """0 for an answer of 15 words, less for longer and shorter ones."""
    return [-abs(len(sample.answer.split()) - 15) / 5 for sample in samples]


def forbidden(samples):
    """1, unsafe, where one of WORDS is said, else -1."""
    return [1.0 if set(WORDS) & set(sample.answer.split()) else -1.0 for sample in samples]


def measured(policy: Path, prompts: Path, seed: int) -> dict[str, float]:
    """Answers to all prompts, at temperature 1: their distance from 15 words, and the share with one of WORDS."""
    answers = [answer.split() for answer in sv.load(policy, batch_size=64).generate(prompts, max_tokens=18, seed=seed)]
    distance = np.mean([abs(len(words) - 15) for words in answers])
    return {"distance": float(distance), "forbidden": float(np.mean([bool(set(WORDS) & set(words)) for words in answers]))}


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    flags.add_argument("--workdir", type=Path, default=Path("runs/functions"))
    flags.add_argument("--iterations", type=int, default=60)
    flags.add_argument("--seed", type=int, default=0)
    given = flags.parse_args()
    start, data = given.quickstart / "sft", given.quickstart / "data"
    table = {"supervised": measured(start, data / "test.parquet", given.seed)}
    for name, changes in RUNS.items():
        result = sv.ppo_lag(
            policy=start,
            reward=nearness,
            cost=forbidden,
            prompts=data / "prompts.parquet",
            validation=data / "validation.parquet",
            workdir=given.workdir / f"{name.replace(' ', '_')}_{given.seed}",
            iterations=given.iterations,
            preset="tiny",
            overrides=SETTINGS | changes | {"seed": given.seed},
        )
        numbers = {"lambda": result.numbers["lambda.final"], "seconds": result.numbers["seconds"]}
        table[name] = measured(result.path, data / "test.parquet", given.seed) | numbers
    for name, row in table.items():
        print(f"{name:15}" + "".join(f"  {key} {value:.3f}" for key, value in row.items()))
    print(json.dumps({"seed": given.seed, "budget": BUDGET} | table))


if __name__ == "__main__":
    main()
