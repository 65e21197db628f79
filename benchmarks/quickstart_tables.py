"""README's tables of the quickstart, from the workdirs of finished runs:

    for seed in 0 1 2; do srlhfv quickstart --workdir=W$seed --seed=$seed; done
    python benchmarks/quickstart_tables.py W0 W1 W2

Prints Markdown: seconds, the policies with the guard off and on, the guard's rounds, and every target.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srlhfv_jax.report import targets

POLICIES = (
    ("sft", "supervised"),
    ("sft.guarded", "supervised + guard"),
    ("ppo", "PPO, no constraint"),
    ("ppo.guarded", "PPO + guard"),
    ("ppo_lag", "**PPO-Lagrangian**"),
    ("ppo_lag.guarded", "**PPO-Lagrangian + guard**"),
)
COLUMNS = (
    ("helpful", "helpful", 2),
    ("helpful_benign", "on harmless prompts", 2),
    ("cost", "true cost", 2),
    ("harm_rate", "harm rate", 2),
    ("over_refusal", "over-refusal", 2),
    ("evasion_rate", "evasion", 2),
    ("length", "tokens", 1),
)

Runs = list[dict[str, Any]]


def each(runs: Runs, key: str, digits: int) -> str:
    """The value of every run."""
    return ", ".join(f"{run[key]:.{digits}f}" for run in runs)


def summary(runs: Runs) -> Iterator[str]:
    outcomes = [targets.check(run) for run in runs]
    met = ", ".join(f"{sum(one.met is True for one in own)} of {len(own)}" for own in outcomes)
    stages = {key.removeprefix("seconds."): value for key, value in sorted(runs[0].items()) if key.startswith("seconds.")}
    total = stages.pop("total")
    parts = ", ".join(f"{name} {value:.0f}" for name, value in stages.items())
    yield f"Seeds {', '.join(str(run['seed']) for run in runs)}: {met} targets met."
    yield f"Seconds: {each(runs, 'seconds.total', 0)} (of the {total:.0f}: {parts})."
    for key in ("oracle_budget", "controller_budget", "lambda.final", "guard.unseen.f1", "guard.unseen.false_positive_rate"):
        yield f"{key}: {each(runs, key, 3)}"
    for run in runs:
        rounds = [run[f"guard.safety_round_{k}"] for k in range(6)]
        yield f"safe after round 0 to 5, seed {run['seed']}: {', '.join(f'{value:.2f}' for value in rounds)}"


def policies(runs: Runs) -> Iterator[str]:
    yield "| policy (test prompts, sampled at T = 1) | " + " | ".join(heading for _, heading, _ in COLUMNS) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for name, label in POLICIES:
        yield f"| {label} | " + " | ".join(each(runs, f"{name}.{key}", digits) for key, _, digits in COLUMNS) + " |"


def goals(runs: Runs) -> Iterator[str]:
    yield "| target | " + " | ".join(f"seed {run['seed']}" for run in runs) + " | |"
    yield "|---" * (len(runs) + 2) + "|"
    for outcomes in zip(*map(targets.check, runs)):
        met = sum(one.met is True for one in outcomes)
        verdict = "met" if met == len(runs) else f"met by {met} of {len(runs)}" if met else "missed"
        yield f"| {outcomes[0].text} | " + " | ".join(one.shown for one in outcomes) + f" | {verdict} |"


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    files = [Path(folder) / "result.json" for folder in sys.argv[1:]]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        sys.exit(f"{missing[0]} does not exist: expected the workdir of a quickstart that has finished")
    runs = [json.loads(file.read_text()) for file in files]
    for part in (summary, policies, goals):
        print("\n".join(part(runs)), end="\n\n")


if __name__ == "__main__":
    main()
