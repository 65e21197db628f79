"""Settings of an earlier start, as WORKDIR/config.json has them, perhaps of an older version."""

import dataclasses
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from srlhfv_jax.config import TRAINED, Trained
from srlhfv_jax.errors import UserError
from srlhfv_jax.parsing import parse

GONE = ("top_k", "top_p", "image_size")  # of rollouts: each had one legal value; of the embedded task: nothing read it

LATER: dict[str, Any] = {
    "revision": "",
    "columns": [],
    "label_means": "desirable",
    "chosen_means": "helpful",
    "fetch": False,
    "decode_first": True,
    "system_prompt": "",
    "chat_template": "",
    "train_on": "last",
    "mix": "",
}  # of `data`
FUNCTIONS: dict[str, Any] = {
    "reward_fn": "",
    "cost_fn": "",
    "functions": dict(rows=16, workers=8, timeout_s=60.0, attempts=3, backoff_s=1.0, reward_cache=True),
}  # of PPO-Lagrangian
PPO: dict[str, Any] = {
    "advantage": "gae",
    "group_size": 1,
    "group_scale": "std",
    "resample": 0,
    "kl_in": "reward",
    "kl_target": 0.0,
    "kl_horizon": 10_000.0,
    "clip_ratio_high": 0.0,
    "dual_clip": 0.0,
    "objective": "ratio",
    "importance_cap": 0.0,
    "entropy_coef": 0.0,
    "target_kl": 0.0,
    "overlong": 0,
    "overlong_penalty": 1.0,
}
ROLLOUT: dict[str, Any] = {"slots": 0}
MOVING_REFERENCE: dict[str, Any] = {"moving_reference": dict(every=0, decay=0.0)}
OPTIMIZER: dict[str, Any] = {"part_rates": (), "frozen_units": "", "only_units": ""}
CONSTRAINTS: dict[str, Any] = {"constraints": (), "guard": "", "lambda_warm_start": 0}
CONSTRAINT: dict[str, Any] = {"calibrated": False, "confidence": 0.0, "tolerance": 0.0, "error": "difference", "softness": 0.0}
HELD_OUT: dict[str, Any] = {"evaluation_every": 0, "keep_best": "", "patience": 0}  # of supervised stages
HELD_OUT_OF_SFT: dict[str, Any] = {"evaluation": "", "evaluation_split": ""} | HELD_OUT
TARGETS: dict[str, Any] = {
    "targets": dict(kind="plain", share=0.0, refusals=(), prefix=False, rto=False, refusal="", positions=1.0, template="")
}  # of sft
PAIRS: dict[str, Any] = {
    "keep_coef": 1.0,
    "undesirable_weight": 0.0,
    "tokens": dict(scorer="", head="reward", baseline=0.0),
}  # of preference
LATER_OF_LOG: dict[str, Any] = {"trackers": [], "project": "srlhfv", "samples_every": 0, "samples": 8, "guard": ""}


def kind_of(keys: Collection[str], origin: str) -> type[Trained]:
    """The class whose settings have these keys: the nearest one, where a key is wrong or missing (`parse` names it).

    Args:
        origin: where the keys come from, for the message.

    Raises:
        UserError: most keys of every stage are missing.
    """
    names = {kind: {field.name for field in dataclasses.fields(kind)} for kind in TRAINED}
    kind = min(TRAINED, key=lambda kind: len(names[kind].symmetric_difference(keys)))
    if 2 * len(names[kind].intersection(keys)) < len(names[kind]):
        raise UserError(f"{origin} has the settings of no stage that trains: expected those of sft, scores, guard or ppo_lag")
    return kind


def read(settings: dict[str, Any], origin: str) -> Trained:
    """The settings of a stage that trains.

    Raises:
        UserError: as `kind_of` and `parse`.
    """
    return parse(kind_of(settings, origin), ConfigDict(current(settings)))


def current(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that are gone, and with what held before those that came later."""
    values = {name: value for name, value in settings.items() if name not in GONE}
    if "picture_buckets" in values:
        values = LATER | values
    if "tensorboard" in values:
        values = LATER_OF_LOG | values
    if {"steps", "evaluation"} <= values.keys():
        values = HELD_OUT | values
    if "init_random" in values:
        values = HELD_OUT_OF_SFT | TARGETS | values
    if "forget_cap" in values:
        values = PAIRS | values
    if {"constraint", "ppo"} <= values.keys():
        values = FUNCTIONS | MOVING_REFERENCE | CONSTRAINTS | values
    if {"gae_lambda", "clip_value"} <= values.keys():
        values = PPO | values
    if {"old_logp", "microbatches"} <= values.keys():
        values = ROLLOUT | values
    if {"b1", "clip_norm"} <= values.keys():
        values = OPTIMIZER | values
    if {"budget", "controller"} <= values.keys():
        values = CONSTRAINT | values
    return {name: current(value) if isinstance(value, dict) else value for name, value in values.items()}
