"""Run both sides of the comparison one after the other, in processes of their own, and print the ratios as one JSON line last.

    python benchmarks/compare.py --size=small          (needs the `test` extra for the PyTorch side)
    python benchmarks/compare.py --size=1b --dtype=bfloat16 --remat=dots          (one GPU of 80 GB)
    python benchmarks/compare.py --sides=torch,shared,group,rloo --rounds=3          (critics beside groups of 8)

The targets are a `speedup` of 1.5 for separate trees and 2.2 for shared ones, and at medium a `memory_ratio` of at most 0.7; with
adapters, at medium, 3.0 and 0.25. Groups make as many answers without critics: at most 0.8 of the time and 0.75 of the memory of the
same trees with critics (`group.time_of_critics`, `group.memory_of_critics`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from sizes import SIZES

HERE = Path(__file__).parent
SIDES = {
    "torch": ("torch_ppo_lag.py",),
    "separate": ("ppo_lag_iteration.py", "--sharing=separate"),
    "shared": ("ppo_lag_iteration.py", "--sharing=shared"),
    "adapters": ("ppo_lag_iteration.py", "--sharing=adapters"),
    "activated": ("ppo_lag_iteration.py", "--sharing=adapters", "--activated"),
    "group": ("ppo_lag_iteration.py", "--sharing=shared", "--advantage=group"),
    "rloo": ("ppo_lag_iteration.py", "--sharing=shared", "--advantage=rloo"),
    "adapters_group": ("ppo_lag_iteration.py", "--sharing=adapters", "--advantage=group"),
}
CRITICS = {"group": "shared", "rloo": "shared", "adapters_group": "adapters"}  # side -> the same trees with critics
PHASES = ("generate_s", "score_s", "update_s")


def run(side: str, both: list[str], ours: list[str], group_size: int) -> dict:
    """One side's own JSON line, with the load average at its start.

    Args:
        both: flags of both frameworks' scripts.
        ours: and of our script alone.
        group_size: answers to a prompt, where advantages are of groups.
    """
    load = round(os.getloadavg()[0], 2)
    script, *flags = SIDES[side]
    flags += both if side == "torch" else both + ours
    flags += [f"--group_size={group_size}"] if side in CRITICS else []
    command = [sys.executable, str(HERE / script), *flags]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    result = json.loads(output.splitlines()[-1]) | {"load_average": load}
    print(json.dumps(result), flush=True)
    return result


def ratios(results: dict[str, dict]) -> dict[str, float]:
    """How many times faster than PyTorch each of our sides is, in all and by phase, and how much of its memory it takes; of sides in
    groups also the parts of time, of CPU seconds, memory and operations that they take of the same trees with critics."""
    numbers = {}
    for side, ours in results.items():
        memory = "peak_device_gb" if "peak_device_gb" in ours else "peak_rss_gb"
        if "torch" in results and side != "torch":
            torch = results["torch"]
            numbers[f"{side}.speedup"] = round(torch["total_s"] / ours["total_s"], 2)
            numbers |= {f"{side}.{phase.removesuffix('_s')}_speedup": round(torch[phase] / ours[phase], 2) for phase in PHASES}
            numbers[f"{side}.memory_ratio"] = round(ours[memory] / torch[memory], 2)
        if CRITICS.get(side) in results:
            other = results[CRITICS[side]]
            parts = {"time": "total_s", "generate": "generate_s", "score": "score_s", "update": "update_s", "cpu": "cpu_s"}
            parts |= {"memory": memory, "prompt_gflop": "prompt_gflop"}
            numbers |= {f"{side}.{name}_of_critics": round(ours[key] / other[key], 3) for name, key in parts.items()}
    return numbers


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each ratio the median over the rounds."""
    return {name: round(statistics.median(numbers[name] for numbers in rounds), 3) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--iterations", type=int, default=3, help="timed ones of each side")
    parser.add_argument(
        "--sides", default="torch,separate,shared,adapters,activated", help=f"torch and some of {', '.join(SIDES)}"
    )
    parser.add_argument("--rounds", type=int, default=1, help="times that all sides run, one after the other")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", choices=("none", "dots", "layer"), default="none", help="of our side")
    parser.add_argument("--scan_unroll", type=int, help="of our side")
    parser.add_argument("--microbatches", type=int, default=1, help="of our side: parts of rollout, scoring and gradient, each")
    parser.add_argument("--group_size", type=int, default=8, help="of our sides in groups; 4 at medium, which has four answers")
    args = parser.parse_args()
    if not set(args.sides.split(",")) <= SIDES.keys():
        parser.error(f"--sides must be some of {', '.join(SIDES)}, got {args.sides}")
    both = [f"--size={args.size}", f"--iterations={args.iterations}", f"--dtype={args.dtype}"]
    ours = [f"--remat={args.remat}", f"--microbatches={args.microbatches}"]
    ours += [] if args.scan_unroll is None else [f"--scan_unroll={args.scan_unroll}"]
    rounds = [
        ratios({side: run(side, both, ours, args.group_size) for side in args.sides.split(",")}) for _ in range(args.rounds)
    ]
    print(json.dumps({"size": args.size, "rounds": args.rounds} | medians(rounds)), flush=True)


if __name__ == "__main__":
    main()
