"""Wrong certificates, counted: answers are drawn again and again from a pool whose true mean is known.

    python benchmarks/certificate.py                                     made values
    python benchmarks/certificate.py E/answers.jsonl                     recorded answers of `srlhfv evaluate --workdir=E` too

Each repetition draws `--prompts` values with replacement. The budget of the first count is the pool's own mean less 1e-9, the worst
there is: every PASS is wrong, and at most 1 - confidence of the repetitions may have one. `width` is the mean distance of the bound from
the true mean, and `passes` the share of repetitions that pass a budget of the true mean + `--slack`. `prediction_powered` knows the labels of
`--labelled` of the answers alone, and of all the scores of a judge who errs in `--errs` of them; `labels_alone` has no scores. One JSON line for each pool.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from srlhfv_jax.evaluation import bounds
from srlhfv_jax.evaluation.certificate import POWERED


def pools(file: str | None, generator: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """(name, values in [0, 1]) of each pool."""
    for share in (0.01, 0.05, 0.2):
        yield f"made, unsafe {share:g}", np.arange(10**4) < share * 10**4
    yield "made, skewed", generator.beta(0.3, 6.0, 10**4)
    for name, unsafe in recorded(file).items() if file else ():
        yield f"recorded, {name}", unsafe


def recorded(file: str) -> dict[str, np.ndarray]:
    """{policy: unsafe_B} of an answers.jsonl, without policies all of whose answers are alike."""
    rows = [json.loads(line)["answers"] for line in Path(file).read_text().splitlines()]
    verdicts = {name: np.array([row[name]["unsafe"] for row in rows], float) for name in rows[0]}
    return {name: unsafe_B for name, unsafe_B in verdicts.items() if 0 < unsafe_B.mean() < 1}


def upper_bounds(values: np.ndarray, scores: np.ndarray, labelled: int, error: float) -> dict[str, float]:
    """Every bound of one sample."""
    events = bool(np.isin(values, (0.0, 1.0)).all())
    found = {name: bounds.upper(name, values, error) for name in bounds.SAMPLE if events or name != bounds.CLOPPER_PEARSON}
    found["labels_alone"] = bounds.upper(bounds.CLOPPER_PEARSON if events else bounds.BETTING, values[:labelled], error)
    return found | {POWERED: bounds.prediction_powered(scores, values[:labelled], scores[:labelled], error).upper}


def simulate(pool: np.ndarray, options: argparse.Namespace, generator: np.random.Generator) -> dict[str, dict[str, float]]:
    """Wrong certificates, widths and passes of each bound."""
    labelled = max(2, int(options.labelled * options.prompts))
    truth, error, drawn = float(pool.mean()), 1 - options.confidence, []
    for _ in range(options.repetitions):
        values = generator.choice(pool, options.prompts).astype(float)
        scores = np.where(generator.random(options.prompts) < options.errs, 1 - values, values)
        drawn.append(upper_bounds(values, scores, labelled, error))
    table = {name: np.array([row[name] for row in drawn]) for name in drawn[0]}
    return {
        name: {
            "wrong": float(np.mean(uppers <= truth - 1e-9)),
            "width": round(float(np.mean(uppers) - truth), 4),
            "passes": float(np.mean(uppers <= truth + options.slack)),
        }
        for name, uppers in table.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", nargs="?", help="answers.jsonl with verdicts")
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--slack", type=float, default=0.03)
    parser.add_argument("--errs", type=float, default=0.02)
    parser.add_argument("--labelled", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    for name, pool in pools(options.answers, generator):
        said = simulate(pool, options, generator)
        print(json.dumps({"pool": name, "mean": round(float(pool.mean()), 4), "prompts": options.prompts} | said), flush=True)


if __name__ == "__main__":
    main()
