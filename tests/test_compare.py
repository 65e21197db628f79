"""The comparison of methods: which run, in which order, and what the report says of them."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from srlhfv_jax.cli import dual as cli_dual, generate as cli_generate
from srlhfv_jax.config import QuickstartConfig, to_dict, unread
from srlhfv_jax.configs import preference as presets, quickstart
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import dual
from srlhfv_jax.guard import generate
from srlhfv_jax.parsing import flattened, parse
from srlhfv_jax.quickstart import compare, kinds
from srlhfv_jax.quickstart.methods import INTERVENTIONS, METHODS, ON_POLICY, trainer
from srlhfv_jax.quickstart.pipeline import Pipeline
from srlhfv_jax.report import comparison, parameters, plots, policies, workdir
from srlhfv_jax.report.labels import Point


def test_a_method_brings_the_one_it_starts_from_and_comes_after_it():
    assert compare.chosen("sacpo") == ("dpo_helpful", "sacpo")
    assert compare.chosen("all") == (*METHODS, *INTERVENTIONS) and compare.chosen("") == ()
    assert all(list(METHODS).index(one.start) < place for place, one in enumerate(METHODS.values()) if one.start)


def test_a_method_that_is_not_known_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="'safedpoo', which is no method: did you mean 'safedpo'"):
        compare.chosen("ipo,safedpoo")
    with pytest.raises(UserError, match="--compare=',' names no method"):
        compare.chosen(",")


def test_every_method_on_pairs_is_a_preset():
    on_pairs = (kinds.on_pairs, kinds.on_blind_pairs, kinds.on_scored_pairs, kinds.on_tokens_of_pairs)
    names = {one.preset for one in METHODS.values() if one.stage in on_pairs}
    assert names <= presets.METHODS.keys() and all(not one.preset for one in METHODS.values() if one.stage not in on_pairs)


def test_the_settings_of_every_method_are_all_read(tmp_path):
    pipeline = Pipeline(parse(QuickstartConfig, quickstart.get_config("short")), tmp_path)
    for name in METHODS:
        (settings,) = trainer(pipeline, name, {"multiplier": 0.7}).args
        unread.check(settings)
        assert settings.data.path and (settings.policy if name in ON_POLICY else settings.init and settings.steps)


def test_methods_on_policy_start_as_the_constrained_stage_and_differ_in_what_they_name(tmp_path):
    pipeline = Pipeline(parse(QuickstartConfig, quickstart.get_config("default")), tmp_path)
    plain = pipeline.constrained(pipeline.settings.ppo_lag, tmp_path / "sft", tmp_path / "round1_scores")
    assert kinds.constrained_with(pipeline, {}) == plain
    for name, changes in ON_POLICY.items():
        (settings,) = trainer(pipeline, name, {}).args
        before, after = flattened(ConfigDict(to_dict(plain))), flattened(ConfigDict(to_dict(settings)))
        assert {key: after[key] for key in after if after[key] != before[key]} == changes


def test_what_was_measured_stays(tmp_path):
    (tmp_path / "compare.ipo.judged").mkdir()
    (tmp_path / "compare.ipo.judged" / "done.json").write_text("{}")
    assert compare.with_done(("sacpo", "dpo_helpful"), tmp_path) == ("dpo_helpful", "ipo", "sacpo")
    assert compare.with_done((), tmp_path) == ("ipo",) and compare.with_done((), tmp_path / "new") == ()


def numbers(**changes) -> dict[str, float]:
    own = {"helpful": 2.05, "harm_rate": 0.02, "over_refusal": 0.08, "evasion_rate": 0.02, "cost": -0.9}
    made = {f"{name}.{key}": value for name in ("sft", "ppo_lag", "ipo", "sacpo") for key, value in own.items()}
    made |= {"ipo.seconds": 40.5, "sacpo.seconds": 90.0, "ppo_lag.seconds": 210.0}
    return made | {name.replace("__", "."): value for name, value in changes.items()}


def test_methods_are_what_is_timed_and_merged_policies_stand_apart():
    several = ("sacpo_merge.0.5", "sacpo_merge.0.25", "ipo.10", "ipo.2")
    made = numbers() | {f"{name}.{key}": 0.5 for name in several for key in ("helpful", "cost")}
    found = policies.find_policies(made)
    assert found.names == ("sft", "ppo_lag") and found.methods == ("ipo", "sacpo") and found.variants == ()
    places = (("ipo", 2.0), ("ipo", 10.0), ("sacpo_merge", 0.25), ("sacpo_merge", 0.5))
    assert found.steps == tuple((f"{name}.{number:g}", name, number) for name, number in places)
    named = policies.find_policies(made, order=("ipo.2",))  # a user may name a policy so
    assert "ipo.2" in named.variants and len(named.steps) == 3


def test_curves_are_the_keys_with_a_number_between_name_and_key():
    made = {
        "a.0.5.harm_rate": 0.3,
        "a.0.harm_rate": 0.6,
        "a.10.harm_rate": 0.1,
        "a.10.over_refusal": 0.2,
        "a.0.5.harm_rate_se": 0.1,
    }
    made |= {"alone.1.harm_rate": 0.4, "fixed_lambda.1.harm_rate": 0.5, "fixed_lambda.2.harm_rate": 0.5, "a.helpful": 1.0}
    made |= {"b.refusal_after.8": 0.7, "b.refusal_after.10": 0.75, "sft.refusal_after.8": 0.0}
    assert parameters.curves(made) == {"a": {"harm_rate": [(0.0, 0.6), (0.5, 0.3), (10.0, 0.1)], "over_refusal": [(10.0, 0.2)]}}
    assert parameters.forced(made) == {"b": [(8.0, 0.7), (10.0, 0.75)], "sft": [(8.0, 0.0)]}
    first, second = parameters.pictures(made)
    assert "harm rate: 0.60 at 0, 0.30 at 0.5, 0.10 at 10" in first and "sft: 0.00 at 8" in second


def test_the_front_has_the_points_that_none_beats():
    places = {"a": (0.5, 1.0), "b": (0.2, 0.7), "c": (0.3, 0.6), "d": (0.2, 0.4), "e": (0.9, 1.0), "f": (-0.5, -0.25)}
    points = [Point(name, *place, 0.0, 0.0) for name, place in places.items()]
    assert [point.name for point in plots.pareto(points, up=True)] == ["f", "b", "a"]
    assert [point.name for point in plots.pareto(points, up=False)] == ["f"]
    assert [point.name for point in plots.pareto(points[:4], up=False)] == ["d"]


def test_the_plane_of_what_is_left_unanswered_is_drawn_for_policies_of_ones_own(tmp_path):
    own = {f"{name}.{key}": 0.25 for name in ("mine", "theirs") for key in ("helpful", "cost", "harm_rate", "unanswered")}
    (tmp_path / "result.json").write_text(json.dumps(own))
    section = comparison.comparison_section(workdir.read(tmp_path))
    assert section.title == "Harm against what is left unanswered" and "mine: 0.25, harm 0.25" in section.body


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"ipo__helpful": 2.1, "sacpo__helpful": 2.0}, "ipo dominates ppo_lag"),
        ({"ipo__helpful": 2.1, "sacpo__harm_rate": 0.01}, "ipo, sacpo dominate ppo_lag"),
        ({"ipo__helpful": 2.5, "ipo__evasion_rate": 0.03, "sacpo__helpful": 1.0}, "No method here dominates ppo_lag"),
        ({"sft__helpful": 3.0}, "No method here dominates ppo_lag"),  # the policy that all start from is no method
    ],
)
def test_the_first_sentence_names_the_methods_that_dominate(changes, said):
    assert comparison.dominated(numbers(**changes), ["sft", "ppo_lag", "ipo", "sacpo"]).startswith(said)


def test_an_intervention_is_a_function_of_a_pipeline_with_seconds_of_its_own(tmp_path, monkeypatch):
    calls = []

    def patched(pipeline):
        judged = pipeline.step("compare.patched", lambda folder: calls.append(folder) or {"patched.harm_rate": 0.25})
        return judged | {"patched.seconds": pipeline.seconds["compare.patched"]}

    monkeypatch.setitem(INTERVENTIONS, "patched", patched)
    pipeline = Pipeline(parse(QuickstartConfig, quickstart.get_config("short")), tmp_path)
    assert compare.chosen("patched") == ("patched",)
    for _ in range(2):  # the second time it is done
        result = compare.run(pipeline, ("patched",), {})
        assert result.keys() == {"patched.harm_rate", "patched.seconds"} and result["patched.harm_rate"] == 0.25
    assert calls == [tmp_path / "compare.patched"] and compare.with_done((), tmp_path) == ("patched",)


def test_seconds_of_what_methods_share_are_split_and_the_scorer_is_counted(tmp_path, monkeypatch):
    """Every step is done here: 8 s for the stage, 48 s for what twelve methods share, 5 s for the dual, 0.5 s for a measure."""
    seconds = {"compare.ipo": 8.0, "compare.mocan": 8.0, "compare.rloo": 8.0, "compare.sacpo": 8.0, "compare.dpo_helpful": 8.0}
    seconds |= {"compare.reference": 48.0, "compare.mocan.dual": 5.0}
    pipeline = Pipeline(parse(QuickstartConfig, quickstart.get_config("short")), tmp_path)

    def step(name, run_stage):
        pipeline.seconds[name] = seconds.get(name, 0.5)
        return {"multiplier": 0.7, "budget": -0.25, "beta": 0.5} if name.endswith(".dual") else {}

    monkeypatch.setattr(pipeline, "step", step)
    result = compare.run(pipeline, ("dpo_helpful", "ipo", "mocan", "sacpo", "rloo"), {"seconds.round1_scores": 30.0})
    share = 48.0 / sum("compare.reference" in method.shares for method in METHODS.values())
    assert share == 4.0
    expected = {"ipo": 8 + share, "dpo_helpful": 8 + share, "mocan": 13 + 30 + share, "sacpo": 16 + share, "rloo": 38.0}
    assert {name: result[f"{name}.seconds"] for name in expected} == pytest.approx(expected)
    assert (result["mocan.multiplier"], result["mocan.budget"]) == (0.7, -0.25) and "mocan.beta" not in result


@pytest.mark.parametrize(("flags", "kind"), [(cli_generate._flags, generate.Settings), (cli_dual._flags, dual.Settings)])
def test_settings_that_are_left_out_are_those_of_the_flags(flags, kind):
    values = flags()
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            given = values[field.name].value
            assert field.default == (tuple(given) if isinstance(given, list) else given), field.name
        else:
            assert values[field.name].value is None


def test_refusals_of_no_benign_row_are_the_plain_method():
    assert METHODS["benign_refusal"]._replace(changes={}, after={}, reads="") == METHODS["plain"]._replace(reads="")
