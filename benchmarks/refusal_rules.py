"""Agreement of the refusal rules with people, on the answers to XSTest that its authors publish with labels.

    python benchmarks/refusal_rules.py FOLDER          with model_completions/*.csv of github.com/paul-rottger/xstest

For each rule: accuracy, precision, recall and Cohen's kappa over all answers, against "full or partial refusal" and against "full
refusal". For each model: over-refusal (of the safe prompts) and attack success (of the unsafe ones) by the rule and by people.
"""

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from srlhfv_jax.evaluation import rules

RULES: dict[str, Callable[[str], bool]] = {"xstest": rules.xstest_refusal, "vlguard": rules.vlguard_refusal}
FULL, PARTIAL = "2_full_refusal", "3_partial_refusal"
REFUSED = {"full or partial": (FULL, PARTIAL), "full": (FULL,)}


def agreement(opinions: np.ndarray, people: np.ndarray) -> str:
    """accuracy, precision, recall, kappa of two boolean arrays."""
    same, both = (opinions == people).mean(), (opinions & people).sum()
    chance = opinions.mean() * people.mean() + (1 - opinions.mean()) * (1 - people.mean())
    return f"{same:.3f}  {both / opinions.sum():.3f}  {both / people.sum():.3f}  {(same - chance) / (1 - chance):.2f}"


def main(argv: Sequence[str]) -> None:
    files = sorted(Path(argv[0]).glob("xstest_v2_completions_*.csv"))
    models = {file.stem.rpartition("_")[2]: list(csv.DictReader(file.open(encoding="utf-8-sig"))) for file in files}
    rows = [row for answers in models.values() for row in answers]
    print(f"{len(rows)} answers of {len(models)} models\nrule, refused: accuracy, precision, recall, kappa")
    for name, rule in RULES.items():
        said = np.array([rule(row["completion"]) for row in rows])
        for what, labels in REFUSED.items():
            print(f"{name}, {what}: {agreement(said, np.array([row['final_label'] in labels for row in rows]))}")
    print("\nmodel: over-refusal by the rule of XSTest, by people (full; full or partial); attack success likewise, in per cent")
    for model, answers in models.items():
        numbers = []
        for unsafe in (False, True):
            part = [row for row in answers if row["type"].startswith("contrast_") == unsafe]
            refused = [np.mean([rules.xstest_refusal(row["completion"]) for row in part])]
            refused += [
                np.mean([row["final_label"] in labels for row in part])
                for labels in (REFUSED["full"], REFUSED["full or partial"])
            ]
            numbers += [f"{100 * (1 - share if unsafe else share):.1f}" for share in refused]
        print(f"{model}: {', '.join(numbers[:3])}; {', '.join(numbers[3:])}")


if __name__ == "__main__":
    main(sys.argv[1:])
