"""`srlhfv plan` for every recipe of configs/recipes.py; prints one JSON line for each, in the order of the table below.

    python benchmarks/plans.py [--only=llava15_7b_adapters,...] [--number=1,4]          (needs the `plan` extra, and no TPU)

A line has the recipe, the slice, the overrides, and the numbers of result.json. A plan that ends in an error has its last line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# Recipe, slice, overrides. The recipe's own slice first.
PLANS = (
    ("llava15_7b_adapters", "v5e:2x2", ()),
    ("llava15_7b_adapters", "v5e:2x4", ()),
    ("llava15_7b_adapters", "v6e:1x1", ("data.batch_size=8", "mesh.tensor=1")),
    ("llava15_7b_adapters", "v5e:1x1", ("data.batch_size=8", "mesh.tensor=1", "lora.int8=True", "rollout.microbatches=2")),
    (
        "llava15_7b_adapters",
        "v5e:1x1",
        (
            "mesh.tensor=1",
            "lora.int8=True",
            "microbatches=16",
            "rollout.microbatches=8",
            "rollout.score_microbatches=4",
        ),
    ),
    ("llava15_7b_group", "v5e:1x1", ()),
    ("llava15_7b_group", "v5e:1x1", ("data.batch_size=32", "rollout.microbatches=4", "rollout.score_microbatches=4")),
    ("qwen2vl_7b_adapters", "v5e:2x4", ()),
    ("qwen25vl_7b_group", "v5e:2x4", ()),
    ("llava15_7b_shared", "v5p:2x2x1", ()),
    ("llava15_7b_shared", "v6e:16x16", ("data.batch_size=2048", "mesh.data=8", "mesh.fsdp=32")),
    ("smolvlm_256m_shared", "v5e:1x1", ()),
    ("gemma3_4b_adapters", "v5e:2x2", ()),
    ("llava15_7b_separate", "v5e:4x8", ()),
    ("qwen25vl_32b_adapters", "v6e:2x4", ()),
    ("qwen25vl_72b_adapters", "v6e:4x4", ()),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="recipes, separated by commas")
    parser.add_argument("--number", default="", help="lines of the table, from 0, separated by commas")
    asked = parser.parse_args()
    names, numbers = ({part for part in text.split(",") if part} for text in (asked.only, asked.number))
    for number, (recipe, topology, overrides) in enumerate(PLANS):
        if (not names or recipe in names) and (not numbers or str(number) in numbers):
            print(json.dumps(plan(recipe, topology, overrides)), flush=True)


def plan(recipe: str, topology: str, overrides: tuple[str, ...]) -> dict:
    """The numbers of one plan, made by a process of its own: the compiler reads its environment once."""
    question = {"recipe": recipe, "topology": topology, "overrides": list(overrides)}
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "srlhfv_jax", "plan", f"--config=configs/ppo_lag.py:{recipe}"]
        command += [f"--topology={topology}", f"--workdir={workdir}", *(f"--config.{one}" for one in overrides)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        found = Path(workdir, "result.json")
        if done.returncode or not found.exists():
            return question | {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        return question | json.loads(found.read_text())


if __name__ == "__main__":
    main()
