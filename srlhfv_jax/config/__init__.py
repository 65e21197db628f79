"""Run settings: ml_collections files on the outside, frozen dataclasses inside.

    base         sections that several stages have: mesh, model, optimizer, lora, data, checkpoint, log
    supervised   what sft, scores and guard have in common
    sft, scores, preference, guard, ppo_lag, quickstart, evaluate
                 the settings of one stage each, with what of them nothing reads (`unread`)
    ranges       values that a setting may have
    held_out     numbers on held-out rows that a checkpoint can be chosen by
    unread       refusal of settings that would be ignored
    constraints  the constraints of PPO-Lagrangian
    terms        the terms that a reward or a cost is the sum of
    comments     the comments beside the fields, for --help
    listing      settings as lines of text, by section, for --help
    stored       settings of an earlier start, as WORKDIR/config.json has them

A config file (configs/*.py) writes every field; `parsing.parse` turns its ConfigDict into one of these dataclasses and refuses
unknown, missing and wrongly typed keys, naming the nearest key, and values out of the range in a field's type. The dataclasses
have no defaults: the value that holds is in the file. `srlhfv STAGE --help` prints the comments beside the fields.
"""

import typing

from srlhfv_jax.config.base import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    choose,
    inference,
    to_dict,
)
from srlhfv_jax.config.constraints import ConstraintConfig
from srlhfv_jax.config.evaluate import EndpointConfig, EvaluateConfig
from srlhfv_jax.config.guard import GuardConfig, PairsConfig
from srlhfv_jax.config.ppo_lag import (
    FunctionsConfig,
    PPOConfig,
    PPOLagConfig,
    PTXConfig,
    ReferenceConfig,
    RolloutConfig,
    ValidationConfig,
)
from srlhfv_jax.config.preference import PreferenceConfig
from srlhfv_jax.config.quickstart import QuickstartConfig, TaskConfig
from srlhfv_jax.config.scores import ScoresConfig
from srlhfv_jax.config.sft import SFTConfig, TargetsConfig

Supervised = SFTConfig | ScoresConfig | PreferenceConfig | GuardConfig  # settings of stages that learn from labelled rows
Trained = SFTConfig | ScoresConfig | PreferenceConfig | GuardConfig | PPOLagConfig  # settings of stages that train
TRAINED = typing.get_args(Trained)

__all__ = [
    "TRAINED",
    "CheckpointConfig",
    "ConstraintConfig",
    "DataConfig",
    "EndpointConfig",
    "EvaluateConfig",
    "FunctionsConfig",
    "GuardConfig",
    "LogConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PPOConfig",
    "PPOLagConfig",
    "ReferenceConfig",
    "PTXConfig",
    "PairsConfig",
    "PreferenceConfig",
    "QuickstartConfig",
    "RolloutConfig",
    "SFTConfig",
    "ScoresConfig",
    "Supervised",
    "TargetsConfig",
    "TaskConfig",
    "Trained",
    "ValidationConfig",
    "choose",
    "inference",
    "to_dict",
]
