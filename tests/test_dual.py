"""`srlhfv dual` on tiny models, from flags to files: sampled answers, their scores, and the multiplier that the solver finds for them."""

import functools
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_stages import picture_task

from srlhfv_jax.cli import dual, main
from srlhfv_jax.config import inference
from srlhfv_jax.data.loader import single_pass
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import policy_answers, scoring
from srlhfv_jax.evaluation.answering import Sampler
from srlhfv_jax.evaluation.compare_policies import ALL_DEVICES
from srlhfv_jax.hf import export_pretrained, load_config_and_processor
from srlhfv_jax.losses import dual as solver
from srlhfv_jax.models import score_heads, vlm
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.quickstart.pipeline import write_rows
from srlhfv_jax.runs import checkpoints

PROMPTS, SAMPLES, BETA = 6, 4, 0.5


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A folder with random `policy`, `helpful` and `harmless`, and `scorer`, `reward` and `cost` with heads; prompts.parquet."""
    folder = picture_task(tmp_path_factory.mktemp("dual"))
    config, _ = load_config_and_processor(folder / "base")
    init = jax.jit(functools.partial(vlm.init, config))
    kinds = {"policy": (), "helpful": (), "harmless": (), "scorer": ("reward", "cost"), "reward": ("reward",), "cost": ("cost",)}
    for number, (name, heads) in enumerate(kinds.items()):
        key = jax.random.key(number)
        scored = score_heads.init(config, heads, key) if heads else None
        export_pretrained(folder / name, config, init(key), base=folder / "base", heads=scored)
    write_rows(folder / "prompts.parquet", task_rows.prompt_rows(0, task_rows.split_cells(0), "train", PROMPTS))
    return folder


def flags(places: Path, name: str, *more: str) -> list[str]:
    given = [f"--policy={places / 'policy'}", f"--data={places / 'prompts.parquet'}", f"--workdir={places / name}"]
    given += [f"--samples={SAMPLES}", f"--beta={BETA}", "--response_length=4", "--batch_size=8", "--ceiling=1e9"]
    return given + list(more)


def run(places: Path, name: str, *more: str) -> dict:
    dual.main(flags(places, name, *more))
    return json.loads((places / name / "result.json").read_text())


def lines(places: Path, name: str) -> list[dict]:
    return list(map(json.loads, (places / name / "scores.jsonl").read_text().splitlines()))


def recorded(places: Path, name: str) -> list[np.ndarray]:
    """Reward and cost, [N, G]."""
    rows = lines(places, name)
    return [np.reshape([row[score] for row in rows], (PROMPTS, SAMPLES)) for score in ("reward", "cost")]


def between(places: Path, name: str) -> float:
    """A budget half way between what can be kept and what the reward alone costs."""
    return float(np.mean(solver.feasible_range(*recorded(places, name), BETA)))


@pytest.fixture(scope="module")
def scorer(places) -> str:
    """The flag of the scorer, whose answers lie in `scored`."""
    run(places, "scored", f"--scorer={places / 'scorer'}", "--budget=1e6")
    return f"--scorer={places / 'scorer'}"


def test_every_prompt_is_answered_as_often_as_asked_and_answers_differ(places, scorer):
    rows = lines(places, "scored")
    assert [row["row"] for row in rows] == [row for row in range(PROMPTS) for _ in range(SAMPLES)]
    assert len({row["question"] for row in rows}) > 1 and all(row["length"] <= 4 for row in rows)
    assert len({row["answer"] for row in rows[:SAMPLES]}) > 1 and len({row["cost"] for row in rows[:SAMPLES]}) > 1


def test_the_multiplier_is_the_solvers_and_spends_the_budget(places, scorer, capsys):
    reward, cost = recorded(places, "scored")
    budget = between(places, "scored")
    found = run(places, "scored", scorer, f"--budget={budget!r}")
    lam = solver.solve(reward, cost, budget, BETA, ceiling=1e9)
    assert found["multiplier"] == lam > 0 and found["cost_at_multiplier"] == pytest.approx(budget, abs=1e-9)
    assert (found["lowest_cost"], found["cost_at_zero"]) == solver.feasible_range(reward, cost, BETA)
    for place, at in (("at_zero", 0.0), ("at_multiplier", lam)):
        weight = np.exp((reward - at * cost) / BETA)
        weight /= weight.sum(1, keepdims=True)
        assert found[f"reward_{place}"] == pytest.approx(np.mean(np.sum(weight * reward, axis=1)))
        assert found[f"answers_{place}"] == pytest.approx(np.mean(1 / np.sum(weight**2, axis=1)))
    assert found["reward_at_zero"] > found["reward_at_multiplier"]
    assert found["reward_sampled"] == pytest.approx(reward.mean()) and found["answers_sampled"] == SAMPLES
    assert found["prompts"] == PROMPTS and found["samples"] == SAMPLES and found["cost_sampled"] == pytest.approx(cost.mean())
    assert f"multiplier {lam:.6g} for E[f(C)] <= {budget:g} (mean; beta 0.5)" in capsys.readouterr().out


def test_budget_kind_and_beta_change_without_sampling_and_a_seed_samples_anew(places, scorer):
    shutil.copytree(places / "scored", places / "told")
    written, first = places / "told" / "scores.jsonl", lines(places, "scored")
    changed = [row | {"cost": 1.5 if place % SAMPLES else -0.5} for place, row in enumerate(first)]
    written.write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert run(places, "told", scorer, "--budget=0.25")["lowest_cost"] == -0.5  # as only a reader of the file would see
    rectified = run(places, "told", scorer, "--budget=0.375", "--kind=rectified")
    share = run(places, "told", scorer, "--budget=0.25", "--kind=probability")
    assert rectified["cost_sampled"] == pytest.approx(1.5 * 3 / 4) and share["cost_sampled"] == pytest.approx(3 / 4)
    assert share["multiplier"] == pytest.approx(1.5 * rectified["multiplier"])
    assert share["cost_at_multiplier"] == pytest.approx(0.25)
    run(places, "told", scorer, "--budget=1e6", "--seed=1")
    assert [row["answer"] for row in lines(places, "told")] != [row["answer"] for row in first]
    run(places, "told", scorer, "--budget=1e6")
    assert lines(places, "told") == first


def test_the_same_numbers_twice(places, scorer):
    budget = f"--budget={between(places, 'scored')!r}"
    results = [run(places, name, scorer, budget) for name in ("scored", "again")]
    assert lines(places, "scored") == lines(places, "again")
    first, second = ({name: value for name, value in one.items() if "second" not in name} for one in results)
    assert first == second


def test_two_separate_models_give_one_score_each(places, scorer):
    run(places, "apart", f"--scorer={places / 'scorer'},{places / 'cost'}", "--budget=1e6")
    run(places, "other", f"--scorer={places / 'reward'},{places / 'scorer'}", "--budget=1e6")
    (both, cost), (own_reward, own_cost), (reward, other) = (recorded(places, name) for name in ("scored", "apart", "other"))
    np.testing.assert_array_equal(own_reward, both)
    np.testing.assert_array_equal(other, cost)
    assert not np.allclose(own_cost, cost) and not np.allclose(reward, both)


def test_two_policies_are_judges(places):
    """Swapped they swap the scores with the other sign, and beta only scales both: the tilt is the same."""
    helpful, harmless = (f"{places / name}" for name in ("helpful", "harmless"))
    run(places, "policies", f"--helpful={helpful}", f"--harmless={harmless}", "--budget=1e6")
    run(places, "swapped", f"--helpful={harmless}", f"--harmless={helpful}", "--budget=1e6")
    (reward, cost), (swapped_reward, swapped_cost) = recorded(places, "policies"), recorded(places, "swapped")
    np.testing.assert_array_equal(swapped_reward, -cost)
    np.testing.assert_array_equal(swapped_cost, -reward)
    budget = float(np.mean(solver.feasible_range(reward, cost, 1.0)))
    judges = f"--helpful={helpful}", f"--harmless={harmless}"
    lams = [run(places, "policies", *judges, f"--budget={beta * budget!r}", f"--beta={beta}") for beta in (0.5, 2.0)]
    expected = solver.solve(reward, cost, budget, 1.0, ceiling=1e9)
    assert [one["multiplier"] for one in lams] == pytest.approx([expected, expected], rel=1e-4)  # costs are float32
    same = f"--reference={helpful}"
    run(places, "same", *judges, same, "--budget=1e6")
    assert not recorded(places, "same")[0].any() and np.any(recorded(places, "same")[1] != cost)


def test_the_log_probability_of_an_answer_is_what_the_sampler_drew_it_with(places):
    mesh, model = use_mesh(ALL_DEVICES), inference("float32")
    data = single_pass(str(places / "prompts.parquet"), prompt_length=0, response_length=4, batch_size=8)
    sampler, policy = Sampler(mesh, data, temperature=1.0), checkpoints.load(str(places / "policy"), model, mesh)
    sampled = {"a": policy_answers.sample("a", policy, policy_answers.read_prompts(data, policy), sampler, 3)}
    read = scoring.jit_logp(mesh)
    found = policy_answers.log_probabilities("--policy", str(places / "policy"), read, sampled, sampler, model)["a"]
    (rollout,) = sampled["a"].rollouts
    assert found == pytest.approx(rollout.logp_BR.sum(axis=1)[:PROMPTS], rel=1e-4) and found.max() < 0


@pytest.mark.parametrize(
    ("judges", "odd", "message"),
    [
        ("scorer", ["--budget=-1e6"], "the budget must lie above .*, got -1000000.0: raise it, or sample more answers"),
        ("scorer", ["--samples=1"], "--samples must be at least 2, got 1"),
        ("scorer", ["--beta=0"], "--beta must be above 0, got 0"),
        ("scorer", ["--beta=-0.1"], "--beta must be above 0, got -0.1"),
        ("scorer", ["--ceiling=0"], "--ceiling must be above 0"),
        ("scorer", ["--kind=rectified", "--budget=0"], "--budget must be above 0, below which --kind=rectified never lies"),
        ("scorer", ["--kind=median"], "kind"),
        ("scorer", ["--prompts=7"], "has 6 prompts that the policy can read, 7 are needed"),
        ("scorer", ["--batch_size=7"], "must be a positive multiple of 8"),
        ("scorer", ["--helpful=/x"], "takes one kind of judge"),
        ("reward", [], "has no cost head"),
        ("cost", [], "has no reward head"),
        ("policy", [], "has no reward head"),
        ("cost,scorer", [], "cost has no reward head"),
        ("scorer,reward", [], "reward has no cost head"),
        ("scorer,scorer,scorer", [], "must be one path, or two: REWARD,COST"),
        ("", [], "nobody scores the answers"),
        ("", ["--helpful=/x"], "give --scorer, or both --helpful and --harmless"),
        ("", ["--helpful=/x", "--harmless=/y", "--kind=probability"], "costs of policies have no such zero"),
    ],
)
def test_mistakes_are_told_in_one_line(places, scorer, capsys, judges, odd, message):
    paths = ",".join(str(places / name) for name in judges.split(",")) if judges else ""
    given = [f"--scorer={paths}", "--budget=1", *odd]
    assert main.main(["dual", *flags(places, "scored"), *given]) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert error.startswith("srlhfv: error: ") and re.search(message, error)
    assert all(line.startswith(("dual: ", f"{places}")) for line in progress)


@pytest.mark.parametrize("missing", ["policy", "data", "workdir", "budget"])
def test_flags_that_are_needed_are_named(places, missing):
    given = [flag for flag in flags(places, "x", "--budget=1") if not flag.startswith(f"--{missing}=")]
    with pytest.raises(UserError, match=f"--{missing} is needed"):
        dual.main(given)


@pytest.mark.parametrize(("keep", "line"), [(SAMPLES - 1, ""), (SAMPLES, "no json"), (SAMPLES, '{"row": 0}'), (0, "")])
def test_a_damaged_file_of_scores_is_refused(places, scorer, keep, line):
    file = places / "scored" / "scores.jsonl"
    before = file.read_text()
    try:
        file.write_text("".join(before.splitlines(True)[:keep]) + line)
        with pytest.raises(UserError, match="remove the file, and the answers are sampled again"):
            run(places, "scored", scorer, "--budget=1e6")
    finally:
        file.write_text(before)
