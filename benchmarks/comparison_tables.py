"""Print the tables of `srlhfv quickstart --compare=...` from finished workdirs, a cell with the value of every seed.

python benchmarks/comparison_tables.py runs/seed0 runs/seed1 runs/seed2
"""

import argparse
from pathlib import Path

from srlhfv_jax.files import read_json
from srlhfv_jax.quickstart.methods import METHODS

COLUMNS = ("helpful", "harm_rate", "over_refusal", "evasion_rate", "unanswered", "length", "seconds")
FURTHER = ("mocan.multiplier", "mocan.budget", "dpo_harmless.blank_drop", "bpo.blank_drop")
MERGED = tuple(f"sacpo_merge.{q}" for q in ("0", "0.25", "0.5", "0.75", "1"))


def cell(results: list[dict], key: str) -> str:
    digits = 0 if key.endswith("seconds") else 1 if key.endswith("length") else 2
    values = [result.get(key) for result in results]
    return ", ".join(
        "–" if value is None else f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"
        for value in values
    )


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("workdirs", nargs="+", type=Path)
    results = [read_json(workdir / "result.json") for workdir in flags.parse_args().workdirs]
    for names in (("sft", "ppo", "ppo_lag", *METHODS), MERGED):
        print("| | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
        for name in names:
            print(f"| `{name}` | " + " | ".join(cell(results, f"{name}.{column}") for column in COLUMNS) + " |")
        print()
    for key in FURTHER:
        print(f"{key}: {', '.join(str(result.get(key)) for result in results)}")


if __name__ == "__main__":
    main()
