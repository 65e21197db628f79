"""The comparison of methods: which run, in which order, and what the report says of them."""

import pytest
from ml_collections import ConfigDict

from srlhfv_jax.config import QuickstartConfig, to_dict, unread
from srlhfv_jax.configs import preference as presets, quickstart
from srlhfv_jax.errors import UserError
from srlhfv_jax.parsing import flattened, parse
from srlhfv_jax.quickstart import compare, kinds
from srlhfv_jax.quickstart.methods import INTERVENTIONS, METHODS, ON_POLICY, trainer
from srlhfv_jax.quickstart.pipeline import Pipeline
from srlhfv_jax.report import comparison, policies


def test_a_method_brings_the_one_it_starts_from_and_comes_after_it():
    assert compare.chosen("sacpo") == ("dpo_helpful", "sacpo")
    assert compare.chosen("all") == (*METHODS, *INTERVENTIONS) and compare.chosen("") == ()
    assert all(list(METHODS).index(one.start) < place for place, one in enumerate(METHODS.values()) if one.start)


def test_a_method_that_is_not_known_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="'safedpoo', which is no method: did you mean 'safedpo'"):
        compare.chosen("ipo,safedpoo")


def test_every_method_on_pairs_is_a_preset():
    on_pairs = (kinds.on_pairs, kinds.on_blind_pairs, kinds.on_scored_pairs)
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
    made = numbers() | {f"sacpo_merge.0.{q}.{key}": 0.5 for q in ("25", "5") for key in ("helpful", "cost")}
    found = policies.find_policies(made)
    assert found.names == ("sft", "ppo_lag") and found.methods == ("ipo", "sacpo") and found.variants == ()
    assert found.merged == (("sacpo_merge.0.25", "sacpo", 0.25), ("sacpo_merge.0.5", "sacpo", 0.5))


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
