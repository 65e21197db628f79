"""Runs with several constraints: what they log, keep, report and refuse; a guard's heads as costs."""

import functools
import json
import re

import numpy as np
import pytest
import tiny_functions
import tiny_hf
from safetensors.numpy import save_file
from tiny_functions import ROWS
from tiny_stages import numbers, settings

import srlhfv_jax as sv
from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.data import chat
from srlhfv_jax.data.taxonomies import SEVERITIES
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import same_prompts
from srlhfv_jax.guard import scoring
from srlhfv_jax.hf import load_config_and_processor, weights
from srlhfv_jax.hf.heads import PLACE
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.report.build import write_report
from srlhfv_jax.training import loop

HARM = dict(name="harm", cost="model")
SHORT = dict(name="short", cost="answer:length", kind="mean", budget=4.5, controller="pid", kp=0.25)
POLITE = dict(name="polite", cost="answer:declined", where="level=l1", kind="probability", budget=0.25)


OWN = """
def words(samples):
    return [None if sample.meta["level"] == "l2" else sum(word in sample.answer.split() for word in ("w6", "w8", "w12")) - 0.5 for sample in samples]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama, prompts with a column of their own, and own.py."""
    return tiny_functions.save(tmp_path_factory.mktemp("constraints"), OWN, ROWS)


def asked(folder, *items: dict, **changes) -> PPOLagConfig:
    data = tiny_functions.data(folder)
    small = {
        "iterations": 4,
        "reward_fn": "answer:length*-0.25",
        "validation.path": data["data.path"],
        "validation.every_steps": 2,
    }
    small |= {"constraint.controller": "pid", "constraint.window": 8, "checkpoint.every_steps": 1, "log.samples_every": 2}
    return settings(PPOLagConfig, "ppo_lag", policy=str(folder / "llama"), constraints=items, **data | small | changes)


def three(folder) -> list[dict]:
    own = dict(name="harm", cost=f"{folder / 'own.py'}:words*2", kind="rectified", budget=0.25)
    return [own, SHORT, POLITE]


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    ppo_lag.run(asked(folder, *three(folder)), workdir)
    return workdir


def test_a_run_logs_every_constraint_under_its_name_and_over_its_own_rows(whole):
    log = numbers(whole)
    lines = [line for line in log if "lambda" in line]
    assert len(lines) == 4
    for line in lines:
        assert {
            "lambda",
            "short.lambda",
            "polite.lambda",
            "short.critic_loss",
        } <= line.keys() and line["short.applies"] == 1
        assert line["short.cost"] == pytest.approx(line["length"]) and line["short.window_cost"] > 0
        assert line["cost"] == pytest.approx(2 * line["cost.words"], abs=1e-6)
        assert 0 < line["applies"] <= 1
    result = json.loads((whole / "result.json").read_text())
    assert {"lambda.final", "short.lambda.final", "polite.lambda.final", "best_feasible.step"} <= result.keys()


def test_the_best_policy_keeps_every_constraint(folder, tmp_path):
    for budget, kept in ((5.0, True), (0.5, False)):
        items = [three(folder)[0] | {"budget": 50.0}, SHORT | {"budget": budget}]
        done = ppo_lag.run(asked(folder, *items, iterations=2), tmp_path / str(budget))
        assert (done["best_feasible.step"] >= 0) == kept, (budget, done)


@pytest.mark.slow
@pytest.mark.parametrize("stop", (1, 3))
def test_a_run_with_three_constraints_goes_on_with_the_same_bits(folder, whole, tmp_path, monkeypatch, stop):
    with monkeypatch.context() as patched:
        patched.setattr(loop, "run", functools.partial(loop.run, stop=lambda done: done == stop))
        with pytest.raises(loop.Preempted):
            ppo_lag.run(asked(folder, *three(folder)), tmp_path)
    ppo_lag.run(asked(folder, *three(folder)), tmp_path)
    assert numbers(tmp_path) == numbers(whole)


def test_the_report_draws_every_multiplier_and_cost_against_its_budget(whole):
    page = write_report(whole).read_text()
    order = [page.index(f"Multiplier λ: {name}<") for name in ("harm", "short", "polite")]
    assert order == sorted(order)  # that of the settings
    for name in ("short", "polite"):
        assert f"Multiplier λ: {name}" in page and f"Windowed cost against the budget: {name}" in page


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("levle=l1", "polite: 6 of 6 rows of config.data.path have no 'levle'; did you mean 'level'?"),
        ("level=l7", "polite is about rows with level=l7, and config.data.path has none: it has 'l0', 'l1', 'l2'"),
    ],
)
def test_a_condition_that_no_row_meets_is_refused_before_anything_is_trained(folder, tmp_path, where, text):
    with pytest.raises(UserError, match=re.escape(text)):
        ppo_lag.run(asked(folder, three(folder)[0], POLITE | {"where": where}), tmp_path)
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        ("answer:lenght", "config.constraints[0].cost names answer:lenght; did you mean 'length'?"),
        ("mine", "config.constraints[0].cost names mine without a file"),
        ("no/such.py:f", "config.constraints[0].cost: there is no file 'no/such.py'"),
    ],
)
def test_a_cost_that_is_not_given_is_refused(folder, tmp_path, cost, text):
    with pytest.raises(UserError, match=re.escape(text)):
        ppo_lag.run(asked(folder, {"name": "harm", "cost": cost}), tmp_path)


def test_none_from_a_rewards_function_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="reward_fn: words gave a list of .*expected a list of"):
        ppo_lag.run(asked(folder, SHORT, reward_fn=f"{folder / 'own.py'}:words"), tmp_path)


def test_functions_of_python_are_costs_of_a_list(folder, tmp_path):
    def shouting(samples):
        return [float(sample.answer.isupper()) for sample in samples]

    items = [dict(name="loud", cost=shouting, kind="probability", budget=0.25), SHORT]
    small = {"data.response_length": 5, "data.batch_size": 4, "data.prompt_length": 16, "constraint.controller": "pid"}
    small |= {"mesh.data": 1, "mesh.fsdp": 1, "reward_fn": "answer:length"}
    result = sv.ppo_lag(folder / "llama", ROWS, tmp_path, constraints=items, iterations=1, preset="tiny", overrides=small)
    assert result.numbers["cost.shouting"] == 0 and result.numbers["short.budget"] == 4.5


def test_the_label_of_a_question_is_a_column_to_choose_rows_by_and_samples_have_it(folder, tmp_path):
    labelled = [{"prompt": f"w{7 + row} w{9 + row}", "harmful": "no" if row % 3 else "yes"} for row in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    seen = []

    def kind(samples):
        seen.extend(samples)
        return [1.0] * len(samples)

    items = [dict(name="harm", cost="kind", where="harmful=true", kind="probability", budget=0.25, learning_rate=0.5)]
    once = asked(
        folder,
        *items,
        **{"data.path": str(tmp_path / "prompts.jsonl"), "validation.path": "", "iterations": 3, "log.samples_every": 0},
    )
    done = ppo_lag.run(once, tmp_path / "run", {"cost": {"kind": kind}})
    assert seen and all(sample.harmful is True for sample in seen) and all(sample.tokens for sample in seen)
    assert (
        sum(4 * line["applies"] for line in numbers(tmp_path / "run")) == 4 and done["window_cost"] == 1
    )  # of two epochs of six rows


@pytest.fixture(scope="module")
def guard(folder):
    """A guard of random heads on another random Llama: its direction of severity, and two categories."""
    place, rng = folder / "guard", np.random.default_rng(5)
    width = tiny_hf.save(place, tiny_hf.llama_config(), seed=5).config.hidden_size
    tensors = {"severity.kernel": rng.normal(size=width), "severity.bias": np.array([0.25, -0.5, -1.0])}
    tensors |= {"categories.kernel": rng.normal(size=(2, width)), "categories.bias": np.array([-0.125, 0.375])}
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, place / weights.GUARD_FILE)
    codec = chat.codec(load_config_and_processor(place)[1])
    about = {"categories": ["weapon", "Hate speech, politics"], "thresholds": {"output": 0.5}, "max_pixels": 0}
    about |= {"template": scoring.template_hash(codec), "severities": list(SEVERITIES)} | PLACE
    (place / weights.GUARD_META).write_text(json.dumps(about))
    return place


def by_guard(folder, place, cost: str, **changes) -> PPOLagConfig:
    items = [dict(name="harm", cost=cost, kind="mean", budget=0.25), SHORT]
    return asked(folder, *items, **{"guard": str(place)} | changes)


def test_heads_of_a_guard_are_costs_as_the_guard_itself_gives_them(folder, guard, tmp_path):
    """What a run says of the answers that it samples, against the guard's own verdicts on the same texts."""
    cost = "guard:unsafe,guard:hate_speech_politics*0.5,answer:length*0.25"
    known = by_guard(folder, guard, cost, iterations=2, **{"log.samples": 6, "data.response_length": 64})
    ppo_lag.run(known, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / same_prompts.FILE).read_text().splitlines()]
    verdicts = sv.load(guard).check([{"prompt": row["question"], "response": row["answers"]["2"]["text"]} for row in rows])
    compared = 0
    for row, verdict in zip(rows, verdicts, strict=True):
        answer = row["answers"]["2"]
        if not answer["ended"] or not answer["text"]:
            continue
        p, compared = verdict.answers[0].scores, compared + 1
        expected = np.log(p["unsafe"] / (1 - p["unsafe"])) + 0.5 * np.log(
            p["Hate speech, politics"] / (1 - p["Hate speech, politics"])
        )
        assert answer["cost"] - 0.25 * answer["length"] == pytest.approx(expected, abs=1e-3)
    assert compared >= 2
    (last,) = [line for line in numbers(tmp_path) if line["step"] == 2 and "lambda" in line]
    terms = last["cost.unsafe"] + 0.5 * last["cost.hate_speech_politics"] + 0.25 * last["cost.length"]
    assert last["cost"] == pytest.approx(terms, abs=1e-5) and last["cost_explained_variance"] != 0


@pytest.mark.parametrize(
    ("cost", "changes", "text"),
    [
        ("guard:wepon", {}, "config.guard=.*guard has no category wepon; did you mean 'weapon'?"),
        (
            "guard:unsafe",
            {"data.system_prompt": "Be kind."},
            "was trained with config.data.system_prompt='', and here it is 'Be kind.'",
        ),
        ("guard:unsafe", {"guard": ""}, "config.guard is empty: expected the workdir or export of srlhfv guard"),
        ("answer:length", {}, "config.guard is '.*guard' and would be ignored: no term of a reward or a cost is of a guard"),
    ],
)
def test_a_guard_that_cannot_be_a_cost_is_refused(folder, guard, tmp_path, cost, changes, text):
    with pytest.raises(UserError, match=text):
        ppo_lag.run(by_guard(folder, guard, cost, **changes), tmp_path)


def test_a_condition_needs_no_function(folder, guard, tmp_path):
    """Reward and cost are heads of the guard alone, and the constraint is about a third of the prompts."""
    items = [dict(name="harm", cost="guard:unsafe", kind="probability", where="level=l1", budget=0.25, learning_rate=0.5)]
    changes = {"guard": str(guard), "reward_fn": "guard:weapon*-1", "iterations": 3, "log.samples_every": 0}
    done = ppo_lag.run(asked(folder, *items, **changes), tmp_path)
    log = [line for line in numbers(tmp_path) if "lambda" in line]
    assert sum(4 * line["applies"] for line in log) == 4 and done["validation.constraint"] in (0, 0.5, 1)
    assert log[0]["reward"] != 0 and not (tmp_path / "reward_cache.jsonl").exists()
