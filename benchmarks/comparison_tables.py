"""Print the tables of `srlhfv quickstart --compare=...` from finished workdirs, a cell with the value of every seed.

python benchmarks/comparison_tables.py runs/seed0 runs/seed1 runs/seed2
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from srlhfv_jax.files import read_json
from srlhfv_jax.quickstart.methods import INTERVENTIONS, METHODS
from srlhfv_jax.report import parameters, policies

Results = Sequence[Mapping[str, float]]  # of each workdir

COLUMNS = ("helpful", "harm_rate", "over_refusal", "evasion_rate", "unanswered", "length", "seconds")
FIRST = ("sft", "ppo", "ppo_lag")
FURTHER = (
    "mocan.multiplier",
    "mocan.budget",
    "mocan.learned_cost",
    "mocan.learned_reward",
    "dpo_harmless.blank_drop",
    "bpo.blank_drop",
)


def cell(results: Results, key: str) -> str:
    digits = 0 if key.endswith("seconds") else 1 if key.endswith("length") else 2
    values = [result.get(key) for result in results]
    return ", ".join(
        "–" if value is None else f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"
        for value in values
    )


def table(results: Results, names: Mapping[str, str], columns: Sequence[str]) -> None:
    """One row for each name, with what stands in its first cell; a row without a number is left out."""
    print("| | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, label in names.items():
        if any(f"{name}.{column}" in result for result in results for column in columns):
            print(f"| {label} | " + " | ".join(cell(results, f"{name}.{column}") for column in columns) + " |")
    print()


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("workdirs", nargs="+", type=Path)
    results = [policies.numeric(read_json(workdir / "result.json")) for workdir in flags.parse_args().workdirs]
    every = {key: value for result in results for key, value in result.items()}
    of_methods = {name: f"`{name}` ({method.reads})" for name, method in METHODS.items()}
    table(results, {name: f"`{name}`" for name in FIRST} | of_methods | {name: f"`{name}`" for name in INTERVENTIONS}, COLUMNS)
    steps = policies.find_policies(every).steps
    for curve in dict.fromkeys(curve for _, curve, _ in steps):
        table(results, {name: f"`{name}`" for name, other, _ in steps if other == curve}, COLUMNS[:-1])
    if lines := parameters.forced(every):
        counts = sorted(
            {f"refusal_after.{number:g}" for some in lines.values() for number, _ in some}, key=lambda key: (len(key), key)
        )
        table(results, {name: f"`{name}`" for name in lines}, counts)
    shown = {f"{name}.{column}" for name in (*METHODS, *INTERVENTIONS) for column in COLUMNS}
    further = [key for key in every if key.startswith(tuple(f"{name}." for name in INTERVENTIONS)) and not key.endswith("_se")]
    for key in (*FURTHER, *(key for key in further if key not in shown)):
        print(f"{key}: {cell(results, key)}")


if __name__ == "__main__":
    main()
