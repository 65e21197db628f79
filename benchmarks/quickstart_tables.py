"""Tables and picture of the quickstart in README and docs/results.md, from the workdirs of finished runs:

    for seed in 0 1 2; do srlhfv quickstart --workdir=W$seed --seed=$seed; done
    python benchmarks/quickstart_tables.py W0 W1 W2              prints Markdown
    python benchmarks/quickstart_tables.py W0 W1 W2 --write      also puts it where it belongs, and draws the picture
    python benchmarks/quickstart_tables.py --draw                draws docs/images/quickstart.svg from the table in docs/results.md

README has the first workdir alone. What is written stands between two markers, which stay.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from srlhfv_jax.report import targets

ROOT = Path(__file__).parents[1]
README, RESULTS, PICTURE = ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "images" / "quickstart.svg"
BEGIN, END = "<!-- quickstart tables: begin -->", "<!-- quickstart tables: end -->"

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

OTHERS = (
    ("oracle_budget", "oracle budget on true cost", 3),
    ("controller_budget", "the controller's budget on the learned `rectified` cost", 2),
    ("lambda.final", "lambda at the end", 2),
    ("guard.unseen.f1", "F1 of the guard on things that nothing in training shows", 2),
    ("guard.unseen.false_positive_rate", "its false-positive rate there", 2),
)
COLOURS = {"supervised": "#555555", "PPO": "#c0392b", "PPO-Lagrangian": "#1a7f4b"}
ALIGNED = {"supervised": "center", "PPO": "right", "PPO-Lagrangian": "left"}  # of the name beside its dots

Runs = list[dict[str, Any]]


def each(runs: Runs, key: str, digits: int) -> str:
    """The value of every run."""
    return ", ".join(f"{run[key]:.{digits}f}" for run in runs)


def others(runs: Runs) -> Iterator[str]:
    """Budgets, the multiplier, and what the guard does."""
    yield "| | " + " | ".join(f"seed {run['seed']}" for run in runs) + " |"
    yield "|---" * (len(runs) + 1) + "|"
    for key, label, digits in OTHERS:
        yield f"| {label} | " + " | ".join(f"{run[key]:.{digits}f}" for run in runs) + " |"
    rounds = (", ".join(f"{run[f'guard.safety_round_{k}']:.2f}" for k in range(6)) for run in runs)
    yield (
        "| safe answers of the supervised policy on harmful prompts, after round 0 to 5 of the guard | "
        + " | ".join(rounds)
        + " |"
    )


def policies(runs: Runs) -> Iterator[str]:
    yield "| policy (test prompts, sampled at T = 1) | " + " | ".join(heading for _, heading, _ in COLUMNS) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for name, label in POLICIES:
        yield f"| {label} | " + " | ".join(each(runs, f"{name}.{key}", digits) for key, _, digits in COLUMNS) + " |"


def goals(runs: Runs) -> Iterator[str]:
    """The targets, without those of time: a time means little without its machine."""
    yield "| target | " + " | ".join(f"seed {run['seed']}" for run in runs) + " | |"
    yield "|---" * (len(runs) + 2) + "|"
    for outcomes in zip(*map(targets.check, runs)):
        if outcomes[0].text.endswith("seconds"):
            continue
        met = sum(one.met is True for one in outcomes)
        verdict = "met" if met == len(runs) else f"met by {met} of {len(runs)}" if met else "missed"
        yield f"| {outcomes[0].text} | " + " | ".join(one.shown for one in outcomes) + f" | {verdict} |"


def short(run: dict[str, Any]) -> Iterator[str]:
    """README's table: the three policies of one run."""
    columns = [column for column in COLUMNS if column[0] in ("helpful", "cost", "harm_rate", "over_refusal")]
    yield f"| seed {run['seed']}, test prompts | " + " | ".join(heading for _, heading, _ in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, label in POLICIES:
        if not name.endswith("guarded"):
            yield f"| {label} | " + " | ".join(f"{run[f'{name}.{key}']:.{digits}f}" for key, _, digits in columns) + " |"


def replace(path: Path, lines: Iterable[str]) -> None:
    """Put `lines` between the markers of a file."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        sys.exit(f"{path} must have the lines {BEGIN} and {END}")
    path.write_text("\n".join((before + BEGIN, *lines, END + after)))


def points(markdown: str) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> (harm rates, helpfulness) of every seed, as the first table between the markers has them."""
    rows = [re.split(r" *\| *", line)[1:-1] for line in markdown.partition(BEGIN)[2].splitlines() if line.startswith("|")]
    helpful, harm = rows[0].index("helpful"), rows[0].index("harm rate")
    known = {label for _, label in POLICIES}
    return {
        row[0].strip("*"): tuple([float(value) for value in row[column].split(",")] for column in (harm, helpful))
        for row in rows[1 : len(POLICIES) + 2]
        if row[0] in known
    }


def draw(path: Path) -> None:
    """Harm to the right, helpfulness upwards: a dot for each seed, a name for each policy."""
    import matplotlib
    from matplotlib import pyplot as plt

    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "quickstart", "font.family": "sans-serif"}
    figure, axes = plt.subplots(figsize=(7.2, 3.9), layout="constrained")
    for label, (harm, helpful) in points(RESULTS.read_text()).items():
        guarded = label.endswith("guard")
        name = re.split(r", | \+ ", label)[0]
        colour = COLOURS[name]
        axes.scatter(harm, helpful, s=46, facecolors="white" if guarded else colour, edgecolors=colour, linewidths=1.4, zorder=3)
        if not guarded:
            where = (sum(harm) / len(harm), max(helpful))
            axes.annotate(label, where, (0, 9), textcoords="offset points", ha=ALIGNED[name], color=colour, weight="bold")
    axes.set(xlabel="harm rate on harmful prompts", ylabel="helpfulness (0 to 3)", xlim=(-0.04, 1.06), ylim=(0, 3))
    axes.text(1.05, 0.06, "filled: the policy alone; open: with the guard; one dot a seed", size=8, ha="right")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="*")
    parser.add_argument("--write", action="store_true", help="write README.md, docs/results.md and the picture")
    parser.add_argument("--draw", action="store_true", help="draw the picture from docs/results.md")
    arguments = parser.parse_args()
    if not arguments.workdirs and not arguments.draw:
        parser.error("expected the workdirs of finished quickstarts")
    files = [Path(folder) / "result.json" for folder in arguments.workdirs]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        sys.exit(f"{missing[0]} does not exist: expected the workdir of a quickstart that has finished")
    runs = [json.loads(file.read_text()) for file in files]
    if runs:
        lines = [*policies(runs), "", *others(runs), "", *goals(runs)]
        print("\n".join([*short(runs[0]), "", *lines]))
        if arguments.write:
            replace(README, short(runs[0]))
            replace(RESULTS, lines)
    if arguments.draw or arguments.write:
        draw(PICTURE)


if __name__ == "__main__":
    main()
