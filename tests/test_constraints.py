"""Several constraints: settings, the mixed advantage, windows of the rows that each is about, and whole runs."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_ppo import models, rolled, static, step
from tiny_stages import settings

import srlhfv_jax as sv
from srlhfv_jax.config import PPOLagConfig, constraints, stored, unread
from srlhfv_jax.errors import UserError
from srlhfv_jax.losses import lagrangian
from srlhfv_jax.losses.calibration import Calibration
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parsing import parse
from srlhfv_jax.ppo_lag import alarms, check, experience

HARM = dict(name="harm", cost="model")
SHORT = dict(name="short", cost="answer:length", kind="mean", budget=4.5, controller="pid", kp=0.25)
POLITE = dict(name="polite", cost="answer:declined", where="level=l1", kind="probability", budget=0.25)


def known(*items: dict, **changes) -> PPOLagConfig:
    return settings(PPOLagConfig, "ppo_lag", policy="p", scorer="s", constraints=items, **changes)


def test_an_item_has_its_own_values_and_those_of_the_common_section():
    costs = known(HARM, SHORT, **{"constraint.kp": 0.5, "constraint.controller": "pid", "constraint.max": 7.5}).costs
    assert list(costs) == ["cost", "short"] and [one.name for one in costs.values()] == ["harm", "short"]
    harm, short = (one.settings for one in costs.values())
    assert (harm.kind, harm.budget, harm.kp, harm.max) == ("rectified", 0.1, 0.5, 7.5)
    assert (short.kind, short.budget, short.kp, short.max) == ("mean", 4.5, 0.25, 7.5)
    assert known(HARM, POLITE).costs["polite"].where == ("level", "l1")


def test_without_a_list_there_is_the_one_constraint_of_before():
    alone = known(**{"constraint.budget": 0.375})
    ((key, one),) = alone.costs.items()
    assert (key, one.name, one.where, one.settings) == ("cost", "cost", None, alone.constraint)
    assert constraints.metric("cost", "lambda") == "lambda" and constraints.metric("short", "lambda") == "short.lambda"


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([HARM, HARM], "config.constraints has two of the name harm"),
        ([HARM, SHORT | {"name": "harm"}], "has two of the name harm"),
        ([HARM, SHORT | {"name": "cost"}], "[1].name is 'cost': expected"),
        ([HARM, SHORT | {"name": "reward"}], "[1].name is 'reward'"),
        ([HARM, SHORT | {"name": "my_critic"}], "none that ends in _critic"),
        ([HARM | {"name": "x"}], "[0].name is 'x': expected two or more"),
        ([HARM | {"name": "Over refusal"}], "[0].name is 'Over refusal'"),
        ([{"cost": "model"}], "config.constraints[0] has no name: expected dict(name='harm', cost='model'"),
        ([{"name": "harm"}], "config.constraints[0] has no cost"),
        ([HARM | {"cost": ""}], "config.constraints[0].cost is empty"),
        ([HARM | {"bugdet": 0.1}], "config.constraints[0] has the key 'bugdet'; did you mean 'budget'?"),
        ([HARM | {"budget": "low"}], "config.constraints[0].budget must be float, got 'low'"),
        ([HARM | {"window": 0}], "config.constraints[0].window must be from 1"),
        ([HARM | {"where": "harmful"}], "config.constraints[0].where is 'harmful': expected COLUMN=VALUE"),
        ([HARM | {"kp": 0.5}], "config.constraints[0].kp would be ignored: its controller is 'projected'"),
        ([HARM | {"kind": "median"}], "config.constraints: harm.kind must be one of"),
        (
            [HARM | {"kind": "probability", "budget": 1.5}],
            "config.constraints: harm.budget must be from 0 to 1 with kind 'probability'",
        ),
        ([HARM, SHORT | {"window": 2}], "config.constraints: short.window 2 is smaller than a rollout, config.data.batch_size 4"),
        ([HARM | {"calibrated": True}], "set config.constraints: harm.kind='probability'"),
        ([HARM, SHORT | {"init": 9.0}], "config.constraints: short.init must lie in [0, max = 5.0]"),
        (["harm"], "config.constraints[0] must be dict, got 'harm'"),
    ],
)
def test_a_list_that_cannot_be_kept_is_refused(items, text):
    with pytest.raises(UserError, match=re.escape(text)):
        check.check(known(*items))


@pytest.mark.parametrize(("kind", "budget"), [("probability", 1.25), ("probability", -0.05), ("rectified", -0.01)])
def test_a_budget_outside_what_its_statistic_reaches_is_refused_unless_nothing_steers(kind, budget):
    changes = {"constraint.kind": kind, "constraint.budget": budget}
    with pytest.raises(UserError, match=f"config.constraint.budget must be .* with kind '{kind}'"):
        check.check(known(**changes))
    check.check(known(**changes, **{"constraint.controller": "none", "constraint.init": 0.0}))


def test_a_cost_function_beside_a_list_is_refused():
    with pytest.raises(UserError, match="config.cost_fn is 'own.py:f' and would be ignored: config.constraints says what costs"):
        unread.check(known(HARM, cost_fn="own.py:f"))


def test_a_command_line_changes_and_adds_items():
    config = sv.config("ppo_lag:two_sided")
    words = [
        "--config.constraints.over_refusal.budget=0.02",
        "--config.constraints.over_refusal.where=is_bad=false",
        "--config.seed=3",
    ]
    words += ["--config.constraints.brevity.cost=answer:length", "--config.constraints.brevity.kind=mean"]
    *rest, flag = constraints.collected(config, words)
    assert rest == ["--config.seed=3"]
    changed = sv.config("ppo_lag:two_sided", {"constraints": eval(flag.partition("=")[2])})
    costs = parse(PPOLagConfig, changed).costs
    assert list(costs) == ["cost", "over_refusal", "brevity"]
    assert costs["over_refusal"].settings.budget == 0.02 and costs["over_refusal"].where == ("is_bad", "false")
    assert costs["brevity"].settings.kind == "mean"


def test_stored_settings_have_the_list_and_older_ones_have_none():
    config = json.loads(sv.config("ppo_lag:two_sided").to_json())
    assert list(stored.read(config, "config.json").costs) == ["cost", "over_refusal"]
    del config["constraints"]
    assert list(stored.read(config, "config.json").costs) == ["cost"]


def test_three_costs_are_subtracted_with_their_multipliers_and_the_sum_is_divided_once():
    costs = {"a": jnp.asarray([0.5]), "b": jnp.asarray([-1.25]), "c": jnp.asarray([2.0])}
    lams = {"a": 0.75, "b": 0.5, "c": 1.25}
    expected = (0.4 - 0.75 * 0.5 + 0.5 * 1.25 - 1.25 * 2.0) / 3.5
    np.testing.assert_allclose(lagrangian.combine(jnp.asarray([0.4]), costs, lams), [expected], rtol=1e-6)
    np.testing.assert_array_equal(lagrangian.combine(jnp.asarray([0.4]), costs, dict.fromkeys(costs, 0.0)), jnp.asarray([0.4]))


@pytest.mark.parametrize("controller", ("projected", "pid"))
def test_a_window_holds_the_rows_alone_that_its_constraint_is_about(controller):
    one = static(**{"constraint.window": 5, "constraint.controller": controller}).settings.constraint
    move = jax.jit(functools.partial(lagrangian.update_multiplier, one))
    state = bare = lagrangian.init(one)
    rng = np.random.default_rng(3)
    for about in ([1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]):
        about_B, cost_B = np.array(about, bool), rng.normal(size=4).astype(np.float32)
        state = move(state, jnp.asarray(cost_B), applies_B=jnp.asarray(about_B))
        bare = move(bare, jnp.asarray(cost_B[about_B]))
        for new, expected in zip(state, bare, strict=True):
            np.testing.assert_allclose(new, expected, rtol=1e-6)
    assert int(state.filled) == 5


def test_where_a_constraint_is_not_about_a_row_its_answer_costs_nothing():
    batch, rollout = rolled()
    alone = static()._replace(own_towers=frozenset())
    score = jax.jit(functools.partial(experience.score, alone, models(), rollout, batch.images, streams=False))
    plain = score({})
    some_B = np.array([True, False] * 4)
    masked = score({"cost": jnp.where(some_B, 0.0, jnp.nan)})
    np.testing.assert_array_equal(masked.applies_B["cost"], some_B)
    np.testing.assert_array_equal(masked.costs_B["cost"], np.where(some_B, plain.costs_B["cost"], 0.0))
    ends = np.asarray(plain.token_BR["cost_critic"] - masked.token_BR["cost_critic"]).sum(axis=1)
    np.testing.assert_allclose(ends, np.where(some_B, 0.0, plain.costs_B["cost"]), rtol=1e-5, atol=1e-6)
    logged = experience.metrics(alone, masked, rollout, {"cost": jnp.where(some_B, 0.0, jnp.nan)})
    assert float(logged["cost"]) == pytest.approx(float(np.mean(np.asarray(plain.costs_B["cost"])[some_B])), rel=1e-5)
    assert float(logged["applies"]) == 0.5


WAYS = {
    "gae": {},
    "streams": {"ppo.minibatches": 2, "ppo.whiten": "scale"},
    "group": {"ppo.advantage": "group", "ppo.group_size": 4},
}


def stepped(way: dict, *items: dict, **changes):
    """One iteration of the tiny models with these constraints, critics for all of them."""
    trees = models()
    if "ppo.advantage" in way:
        del trees["critic"]
    else:
        heads = trees["critic"]["heads"]
        trees["critic"] = trees["critic"] | {"heads": heads | {item["name"]: dict(heads["cost"]) for item in items[1:]}}
    batch, rollout = rolled()
    known = static(constraints=items, **way | changes)._replace(own_towers=frozenset())
    return step(known, rollout, batch.images, trees)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_one_constraint_in_a_list_is_the_run_without_a_list_bit_for_bit(way):
    plain, listed = stepped(way), stepped(way, HARM)
    jax.tree.map(np.testing.assert_array_equal, *(hosts.to_host((one.params, one.metrics)) for one in (plain, listed)))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_two_constraints_on_one_cost_weigh_as_much_as_one_with_the_sum_of_their_multipliers(way):
    fixed = {"constraint.controller": "fixed"}
    one = stepped(way, HARM | {"init": 0.75}, **fixed)
    two = stepped(way, HARM | {"init": 0.5}, HARM | {"name": "again", "init": 0.25}, **fixed)
    assert float(two.metrics["lambda"]) == 0.5 and float(two.metrics["again.lambda"]) == 0.25
    moved = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(hosts.to_host(run.params["policy"]))]) for run in (one, two)]
    start = np.concatenate([np.ravel(x) for x in jax.tree.leaves(models()["policy"])])
    assert np.abs(moved[0] - start).max() > 1e-4
    np.testing.assert_allclose(moved[0] - start, moved[1] - start, rtol=2e-3, atol=2e-6)


def test_each_multiplier_follows_its_own_cost_and_budget():
    held = {"constraint.controller": "projected", "constraint.init": 0.75, "constraint.learning_rate": 0.25}
    both = stepped(
        {}, HARM | {"budget": -0.5}, HARM | {"name": "again", "kind": "rectified", "budget": 0.125, "init": 1.5}, **held
    )
    cost_B = np.asarray(both.experience.costs_B["cost"])
    np.testing.assert_array_equal(cost_B, both.experience.costs_B["again"])
    assert float(both.metrics["lambda"]) == pytest.approx(0.75 + 0.25 * (cost_B.mean() + 0.5), rel=1e-5)
    assert float(both.metrics["again.lambda"]) == pytest.approx(1.5 + 0.25 * (np.maximum(cost_B, 0).mean() - 0.125), rel=1e-5)
    assert float(both.metrics["again.window_cost"]) == pytest.approx(np.maximum(cost_B, 0).mean(), rel=1e-5)
    assert {"again.explained_variance", "again.cost", "again.constraint", "again.budget"} <= both.metrics.keys()


def test_a_multiplier_at_its_largest_is_told_by_the_name_of_its_constraint():
    memory, told = alarms.start({}), []
    line = {"harm_rate_model": 0.1, "entropy": 1.0, "length": 10.0, "lambda": 0.5, "window_cost": 0.2, "budget": 0.1}
    line |= {"short.lambda": 5.0, "short.window_cost": 9.0, "short.budget": 4.5}
    for number in range(alarms.FIRST + alarms.MANY + 1):
        told += alarms.after_step(known(HARM, SHORT), memory, number, line)
    assert len(told) == 1 and "short: lambda has been at its max" in told[0]
    assert list(alarms.told(memory)) == ["alarm.short.multiplier"]


def test_a_calibration_is_that_of_the_constraint_that_asks_for_it_alone():
    batch, rollout = rolled()
    items = [HARM | {"kind": "probability", "calibrated": True}, HARM | {"name": "again", "kind": "probability"}]
    known = static(constraints=items, **WAYS["group"])._replace(own_towers=frozenset(), calibration=Calibration(1.5, -0.25))
    trees = {name: tree for name, tree in models().items() if name != "critic"}
    done = step(known, rollout, batch.images, trees)
    cost_B = np.asarray(done.experience.costs_B["cost"])
    np.testing.assert_allclose(done.metrics["window_cost"], (1 / (1 + np.exp(0.25 - 1.5 * cost_B))).mean(), rtol=1e-5)
    np.testing.assert_allclose(done.metrics["again.window_cost"], (cost_B > 0).mean(), rtol=1e-5)
    np.testing.assert_allclose(done.metrics["again.constraint"], (cost_B > 0).mean(), rtol=1e-5)
