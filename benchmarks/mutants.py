"""Break the mathematics in one place at a time, and see which test notices; prints a table, and one JSON line last.

    python benchmarks/mutants.py [--only=NAME,NAME] [--write=docs/testing.md]

Each mutant is one small replacement in one file of a copy of the tree, whose tests then run up to the first that fails: the killer. Its
name must say what broke. The exit code is 1 if the tests fail without any mutant, if a mutant lives, or if something else than a test
killed it. `--write` puts the table between the two comments of a page that say so.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = ("srlhfv_jax", "configs", "tests")
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"
PATIENCE_S = 900
STEP, UPDATE, LOSSES, LAGRANGIAN = "test_ppo_step.py", "test_ppo_update.py", "test_losses_ppo.py", "test_losses_lagrangian.py"


class Mutant(NamedTuple):
    """`old`, which stands once in a file of srlhfv_jax/, becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: str  # the file whose tests are asked


MUTANTS = (
    Mutant(
        "the two streams are swapped",
        "ppo_lag/advantages.py",
        'return _mixed(streams[critic("reward")].adv_BR, costs, mask_BR, lams, ppo)',
        'return _mixed(costs[FIRST], {FIRST: streams[critic("reward")].adv_BR}, mask_BR, lams, ppo)',
        STEP,
    ),
    Mutant(
        "lambda is ignored",
        "ppo_lag/advantages.py",
        "return lagrangian.combine(reward_BR, costs_BR, lams)",
        "return lagrangian.combine(reward_BR, costs_BR, dict.fromkeys(lams, 0.0))",
        STEP,
    ),
    Mutant(
        "the multiplier moves after the update",
        "losses/lagrangian.py",
        '"lambda": multiplier(constraint, state)}',
        '"lambda": multiplier(constraint, before)}',
        STEP,
    ),
    Mutant(
        "the reference is the policy",
        "ppo_lag/experience.py",
        'logp("reference") if',
        'logp("policy") if',
        STEP,
    ),
    Mutant(
        "the heads of reward and cost are swapped",
        "ppo_lag/roles.py",
        """    "reward": Place("scorer", "reward"),
    "cost": Place("scorer", "cost"),""",
        """    "reward": Place("scorer", "cost"),
    "cost": Place("scorer", "reward"),""",
        STEP,
    ),
    Mutant(
        "the critics' heads are swapped",
        "ppo_lag/roles.py",
        """    "reward_critic": Place("critic", "reward"),
    "cost_critic": Place("critic", "cost"),""",
        """    "reward_critic": Place("critic", "cost"),
    "cost_critic": Place("critic", "reward"),""",
        STEP,
    ),
    Mutant(
        "values are read after their token",
        "ppo_lag/experience.py",
        "{role: score_BR1[:, :-1] for role, score_BR1 in values.items()}",
        "{role: score_BR1[:, 1:] for role, score_BR1 in values.items()}",
        STEP,
    ),
    Mutant(
        "the policy pays C where max(0, C) or 1[C > 0] is bounded",
        "ppo_lag/experience.py",
        "value_B = lagrangian.statistic(static.settings.costs[key].settings.kind, cost_B, static.calibration_of(key))",
        'value_B = lagrangian.statistic("mean", cost_B)',
        STEP,
    ),
    Mutant(
        "an answer that was cut is rewarded",
        "ppo_lag/experience.py",
        "ppo.missing_eos_penalty * (~rollout.ended_B)",
        "ppo.missing_eos_penalty * rollout.ended_B",
        STEP,
    ),
    Mutant(
        "the policy is trained while the critics warm up",
        "ppo_lag/iteration.py",
        "training._replace(optimizers=alone, train_policy=False, rates={})",
        "training",
        STEP,
    ),
    Mutant(
        "masks are ignored in means over tokens",
        "losses/masked.py",
        "return jnp.sum(keep(x_BR, mask_BR)), jnp.sum(mask_BR, dtype=jnp.float32)",
        "return jnp.sum(x_BR), jnp.float32(mask_BR.size)",
        "test_losses_masked.py",
    ),
    Mutant(
        "the KL is earned, not paid",
        "losses/shaping.py",
        "return -kl_coef * masked.keep(kl_BR, mask_BR)",
        "return kl_coef * masked.keep(kl_BR, mask_BR)",
        LOSSES,
    ),
    Mutant(
        "the cost's sign is turned",
        "losses/shaping.py",
        "return kl_coef * masked.keep(kl_BR, mask_BR) + _at_end(end_cost_B, mask_BR, clip_score)",
        "return kl_coef * masked.keep(kl_BR, mask_BR) - _at_end(end_cost_B, mask_BR, clip_score)",
        STEP,
    ),
    Mutant(
        "the end score is paid one token early",
        "losses/shaping.py",
        "end_BR = mask_BR & (later_BR == 1)",
        "end_BR = mask_BR & (later_BR == 2)",
        LOSSES,
    ),
    Mutant(
        "KL is clipped with the score",
        "losses/shaping.py",
        "return -kl_coef * masked.keep(kl_BR, mask_BR) + _at_end(end_score_B, mask_BR, clip_score)",
        """kl_BR = jnp.clip(kl_BR, -clip_score, clip_score)
    return -kl_coef * masked.keep(kl_BR, mask_BR) + _at_end(end_score_B, mask_BR, clip_score)""",
        LOSSES,
    ),
    Mutant(
        "GAE's lambda is ignored",
        "losses/gae.py",
        "adv_B = delta_B + gamma * gae_lambda * adv_B",
        "adv_B = delta_B + gamma * adv_B",
        LOSSES,
    ),
    Mutant(
        "the ratio is clipped on the wrong side",
        "losses/ppo.py",
        "gain_BR = jnp.minimum(ratio_BR * adv_BR, clipped_BR * adv_BR)",
        "gain_BR = jnp.maximum(ratio_BR * adv_BR, clipped_BR * adv_BR)",
        LOSSES,
    ),
    Mutant(
        "values are not clipped",
        "losses/ppo.py",
        "0.5 * jnp.maximum(error_BR, clipped_error_BR)",
        "0.5 * error_BR",
        LOSSES,
    ),
    Mutant(
        "the window keeps the oldest costs",
        "losses/lagrangian.py",
        "window_W=episodes[-constraint.window :]",
        "window_W=episodes[: constraint.window]",
        LAGRANGIAN,
    ),
    Mutant(
        "lambda falls over the budget",
        "losses/lagrangian.py",
        "over = error(constraint, cost)\n    match",
        "over = -error(constraint, cost)\n    match",
        LAGRANGIAN,
    ),
    Mutant(
        "the advantage is not divided by 1 + lambda",
        "losses/lagrangian.py",
        "return mixed / weight",
        "return mixed",
        LOSSES,
    ),
    Mutant(
        "the coefficient of PTX is ignored",
        "ppo_lag/update.py",
        "lambda g, p: g + static.settings.ptx.coef * p",
        "lambda g, p: g + p",
        UPDATE,
    ),
    Mutant(
        "every epoch deals the same minibatches",
        "ppo_lag/update.py",
        "jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(ppo.epochs))",
        "jax.vmap(functools.partial(jax.random.fold_in, key))(0 * jnp.arange(ppo.epochs))",
        UPDATE,
    ),
    Mutant(
        'whiten="scale" does nothing',
        "ppo_lag/advantages.py",
        'if ppo.whiten != "none":',
        'if ppo.whiten == "reward_mean":',
        UPDATE,
    ),
    Mutant(
        "answers are not compared with their group",
        "losses/groups.py",
        "centred_NG = score_NG - jnp.mean(score_NG, axis=1, keepdims=True)",
        "centred_NG = score_NG - jnp.mean(score_NG)",
        "test_groups.py",
    ),
    Mutant(
        "a further constraint's multiplier is left out of the sum",
        "losses/lagrangian.py",
        "mixed, weight = mixed - lams[name] * cost_adv, weight + lams[name]",
        "mixed, weight = mixed - lams[name] * cost_adv, 1 + lams[name]",
        "test_constraints.py",
    ),
    Mutant(
        "rows that a constraint is not about enter its window",
        "losses/lagrangian.py",
        "if applies_B is not None:  # the others",
        "if False:  # the others",
        "test_constraints.py",
    ),
    Mutant(
        "every constraint steers by the first one's cost",
        "ppo_lag/iteration.py",
        "constraint, controllers[key], scored.costs_B[key], hold,",
        "constraint, controllers[key], scored.costs_B[FIRST], hold,",
        "test_constraints_run.py",
    ),
    Mutant(
        "the KL is normalised with the scores of its group",
        "ppo_lag/advantages.py",
        'advantages(kl_B, "none")',
        "advantages(kl_B, ppo.group_scale)",
        "test_groups.py",
    ),
    Mutant(
        'scale_scores="std" does nothing',
        "ppo_lag/experience.py",
        'if scale_scores == "std" else score_B',
        'if scale_scores == "deviation" else score_B',
        UPDATE,
    ),
    Mutant(
        "the reference is left out of a pair's log-ratios",
        "losses/preference.py",
        "logp_BS.astype(jnp.float32) - ref_logp_BS.astype(jnp.float32), winner_B)",
        "logp_BS.astype(jnp.float32) - 0 * ref_logp_BS.astype(jnp.float32), winner_B)",
        "test_preference_terms.py",
    ),
    Mutant(
        "an unsafe loser is pushed away by less",
        "losses/preference.py",
        "return delta * (unsafe_l_B - unsafe_w_B)",
        "return delta * (unsafe_w_B - unsafe_l_B)",
        "test_preference_terms.py",
    ),
    Mutant(
        "the loser is called the winner",
        "preference/terms.py",
        "return x_NS[rows, winner_N], x_NS[rows, 1 - winner_N]",
        "return x_NS[rows, 1 - winner_N], x_NS[rows, winner_N]",
        "test_preference_terms.py",
    ),
    Mutant(
        "a pair whose winner is unsafe is kept",
        "data/preferences.py",
        'if choice.transform != "none" and unsafe[winner]:',
        'if choice.transform == "all" and unsafe[winner]:',
        "test_data_preferences.py",
    ),
    Mutant(
        "the baseline of KTO counts rows that fill a batch",
        "preference/unpaired.py",
        "masked.weighted_mean(other_logp_B - others.reference_B, batch.weight_B)",
        "masked.weighted_mean(other_logp_B - others.reference_B, jnp.ones_like(batch.weight_B))",
        "test_unpaired.py",
    ),
    Mutant(
        "the loser keeps tokens above the baseline",
        "preference/tokens.py",
        "else value_R < baseline for",
        "else value_R > baseline for",
        "test_preference_tokens.py",
    ),
    Mutant(
        "classes of rows are drawn alike",
        "data/classes.py",
        "Share(len(some), shares[value])",
        "Share(len(some), 1.0)",
        "test_data_classes.py",
    ),
)


class Death(NamedTuple):
    """What became of a mutant."""

    mutant: str
    file: str
    killer: str  # test file::test; "": it lives, or something else than a test killed it
    seconds: float


def copy(folder: Path) -> Path:
    """The tree as it is now; the package and its configs are imported from there."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "srlhfv_jax" / "configs").symlink_to(folder / "configs")
    return folder


def run(tree: Path, tests: list[str]) -> tuple[int, str]:
    """(exit code, output) of the tests of a copy, which stop at the first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=line", "-rfE"]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    files = [str(tree / "tests" / name) for name in tests]
    done = subprocess.run([*command, *files], cwd=tree, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    return done.returncode, done.stdout + done.stderr


def kill(tree: Path, mutant: Mutant) -> Death:
    """Put the mutant into the copy, run its tests, and take it out again."""
    file = tree / "srlhfv_jax" / mutant.file
    text, start = file.read_text(), time.perf_counter()
    if text.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.name}: {mutant.file} has its text {text.count(mutant.old)} times, expected once: {mutant.old!r}"
        )
    file.write_text(text.replace(mutant.old, mutant.new))
    try:
        code, output = run(tree, [mutant.tests])
    finally:
        file.write_text(text)
    killer = re.search(r"^FAILED (?:\S*/)?(test_\w+\.py::\S+)", output, re.MULTILINE)
    if code not in (0, 1) or (code == 1 and not killer):
        print(output[-3000:], file=sys.stderr)
    return Death(mutant.name, mutant.file, killer[1] if killer and code == 1 else "", round(time.perf_counter() - start, 1))


def table(deaths: list[Death]) -> str:
    lines = ["| what is broken | in | the test that fails first |", "| --- | --- | --- |"]
    for death in deaths:
        killer = (
            f"`{death.killer.partition('::')[2]}` (`tests/{death.killer.partition('::')[0]}`)" if death.killer else "**none**"
        )
        lines.append(f"| {death.mutant} | `{death.file}` | {killer} |")
    return "\n".join(lines)


def write(page: Path, text: str) -> None:
    """Replace what stands between the page's two comments."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, marked, after = rest.partition(END)
    if not marked:
        raise SystemExit(f"{page} has no lines {BEGIN} and {END} for the table to stand between")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of mutants, comma-separated; default: all")
    parser.add_argument("--write", type=Path, help="page that gets the table")
    flags = parser.parse_args()
    names = [name for name in flags.only.split(",") if name]
    if names and flags.write:
        parser.error("--write is for the table of all mutants: leave --only away")
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        tree = copy(Path(folder) / "tree")
        code, output = run(tree, sorted({mutant.tests for mutant in chosen}))
        if code:
            print(output[-3000:], file=sys.stderr)
            raise SystemExit("the tests fail without any mutant")
        deaths = []
        for mutant in chosen:
            deaths.append(kill(tree, mutant))
            print(f"{mutant.name}: {deaths[-1].killer or 'LIVES'} ({deaths[-1].seconds} s)", file=sys.stderr, flush=True)
    print(table(deaths))
    if flags.write:
        write(flags.write, table(deaths))
    alive = [death.mutant for death in deaths if not death.killer]
    print(json.dumps({"mutants": len(deaths), "alive": alive, "deaths": [death._asdict() for death in deaths]}))
    return int(bool(alive))


if __name__ == "__main__":
    sys.exit(main())
