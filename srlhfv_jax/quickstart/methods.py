"""The methods of the comparison, in the order in which they run: what each learns from, with which settings.

Settings on pairs and rows were chosen on validation prompts of seed 0, those on policy on validation prompts of seeds 0 and 1, once for
all seeds (docs/results.md).
"""

from collections.abc import Callable, Mapping
from typing import Any

from srlhfv_jax.data.quickstart import answers
from srlhfv_jax.quickstart import interventions, kinds, measures, patching, revising
from srlhfv_jax.quickstart.kinds import BLIND, SCORER, Method, Numbers, Train
from srlhfv_jax.quickstart.measures import BETA
from srlhfv_jax.quickstart.pipeline import Pipeline

BENIGN_REFUSAL = {"kind": "benign_refusal", "share": 0.1, "refusals": (answers.REFUSAL,)}  # of config.targets
DERTA = {"kind": "derta", "prefix": True, "rto": True, "refusal": answers.REFUSAL.split()[0]}
ON_POLICY: dict[str, dict[str, Any]] = {  # changes of the quickstart's constrained stage
    "rloo": {"ppo.advantage": "rloo", "ppo.group_size": 2, "data.batch_size": 160},
    # the same but for the size of a step
    "group": {"ppo.advantage": "group", "ppo.group_size": 2, "ppo.group_scale": "none", "data.batch_size": 160},
    "crpo": {"constraint.controller": "crpo", "constraint.max": 1e6},
    "p3o": {"constraint.controller": "p3o", "constraint.max": 20.0},
    "cpgd": {"ppo.objective": "log"},
}


def _on_policy(changes: Mapping[str, Any]) -> Method:
    return Method(kinds.on_policy, "no pairs; a scorer, rollouts", changes=changes, shares=(), whole=(SCORER,))


METHODS = {
    "dpo_helpful": Method(kinds.on_pairs, "helpfulness", 0.25, {"beta": BETA}, "dpo_helpful"),
    "dpo_harmless": Method(kinds.on_pairs, "safety", 0.125, {"beta": BETA}, "dpo_harmless", after={"blank": measures.blank_drop}),
    "bpo": Method(
        kinds.on_blind_pairs,
        "safety; answers without the picture",
        0.125,
        {"beta": BETA},
        "bpo",
        before={BLIND: measures.answer_blindly},
        after={"blank": measures.blank_drop},
    ),
    "dpo_safe_better": Method(kinds.on_pairs, "helpfulness, safety of the winner", 0.125, {"beta": BETA}, "dpo_safe_better"),
    "ipo": Method(kinds.on_pairs, "helpfulness", 0.25, {"beta": BETA}, "ipo"),
    "simpo": Method(kinds.on_pairs, "helpfulness", 0.125, {"sft_coef": 1.0}, "simpo"),
    "safedpo": Method(kinds.on_pairs, "helpfulness, safety of both", 0.25, {"beta": BETA, "sft_coef": 1.0}, "safedpo"),
    "bfpo": Method(kinds.on_pairs, "helpfulness, safety of both", 0.25, {"beta": 0.2, "sft_coef": 1.0}, "bfpo"),
    "mocan": Method(
        kinds.on_scored_pairs,
        "nothing; a scorer",
        0.25,
        {"beta": BETA},
        "mocan",
        before={"compare.{name}.dual": measures.dual},
        after={"learned": measures.learned_cost},
        whole=(SCORER,),
    ),
    "kto": Method(kinds.on_pairs, "safety of each answer", 0.0625, {"beta": BETA}, "kto"),
    "equilibrate": Method(
        kinds.on_tokens_of_pairs,
        "helpfulness; a scorer, of tokens",
        0.0625,  # at that of dpo_helpful, and without the supervised term, nothing but evasions is left
        {"beta": BETA, "sft_coef": 1.0},
        "equilibrate",
        whole=(SCORER,),
    ),
    "unlearn": Method(kinds.on_pairs, "safety", 0.125, preset="unlearn"),
    "plain": Method(kinds.on_rows, "no pairs: the supervised rows again", 0.25, shares=()),
    "benign_refusal": Method(
        kinds.on_rows,
        "no pairs: the supervised rows",
        0.25,
        BENIGN_REFUSAL,
        after={"shares": measures.shares},
        shares=(),
    ),
    "derta": Method(kinds.on_mixed_rows, "safety of both", 0.03, DERTA, after={"forced": measures.refusal_after}, shares=()),
    "sacpo": Method(
        kinds.on_pairs,
        "helpfulness, then safety",
        0.25,
        {"beta": 0.25},
        "sacpo",
        start="dpo_helpful",
        after={"merged": measures.merged},
        shares=(),
    ),
    **{name: _on_policy(changes) for name, changes in ON_POLICY.items()},
}

# What is done to weights and activations, in steps of its own of which compare.NAME is the first or last: pipeline -> "NAME.KEY" ->
# number, `NAME.seconds` among them. They run after the methods.
INTERVENTIONS: dict[str, Callable[[Pipeline], dict[str, float]]] = {
    "patched": patching.patched,
    "revision": revising.revised,
    "frozen_units": interventions.frozen_units,
}


def trainer(pipeline: Pipeline, name: str, told: Numbers) -> Train:
    """A method's stage, as a function of its workdir.

    Args:
        told: numbers of the steps before it: the multiplier of a method that goes by a scorer.
    """
    return METHODS[name].stage(pipeline, METHODS[name], told)
