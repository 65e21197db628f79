"""The quickstart's guard by itself on several seeds: rows, names and the supervised policy of each, then the guard. One JSON line each.

    python benchmarks/guard_seeds.py --seeds=3,4,5,6 --workdir=runs/guards

A seed that is done is not trained again; the workdir of one is that of a quickstart, which can go on from it.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from srlhfv_jax.config import QuickstartConfig
from srlhfv_jax.configs import quickstart
from srlhfv_jax.parallel import host_cpu
from srlhfv_jax.parsing import parse
from srlhfv_jax.quickstart.pipeline import Pipeline
from srlhfv_jax.runs.run import write_settings

NUMBERS = ("guard.f1", "guard.false_positive_rate", "guard.severity_accuracy")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--seeds", default="3,4,5,6", help="comma-separated")
    flags.add_argument("--workdir", type=Path, default=Path("runs/guards"))
    flags.add_argument("--preset", default="default", help="of configs/quickstart.py")
    given = flags.parse_args()
    host_cpu.prepare()
    for seed in map(int, given.seeds.split(",")):
        settings = dataclasses.replace(parse(QuickstartConfig, quickstart.get_config(given.preset)), seed=seed)
        pipeline = Pipeline(settings, given.workdir / f"seed{seed}")
        write_settings(pipeline.workdir, settings)
        pipeline.start()
        _, numbers = pipeline.guard()
        print(json.dumps({"seed": seed} | {name: numbers[name] for name in NUMBERS if name in numbers}), flush=True)


if __name__ == "__main__":
    main()
